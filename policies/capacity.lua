-- Admits until a Monolith, or a room, is full; holds whom it may have to turn away for a moment; then rejects. Choose it
-- when a Monolith beyond some number of users serves nobody well, so that a clear "full" is better than a slow room.
--
-- settings.max_users = 1000: users of a Monolith, over all balancers; one of weight 2 takes twice as many.
-- settings.max_room_clients: clients of one room, as this balancer counts them; no limit unless set.
-- settings.hold = "2s" and settings.holds = 2: how long and how often somebody waits before being turned away (all in all
-- at most timeouts.hold); 0 holds: at once.
-- settings.full_code = 503: the answer to who is turned away: 400 to 599 before the upgrade, 4000 to 4999 closes after it.
--
-- Who comes back to a room that is there is let in even when its Monolith is full: they had a place a moment ago. A room
-- that lost its Monolith is placed even when all are full: its members are in already.

local policy = { name = "capacity", api = 1 }

local function setting(name, default, what, right)
  local value = usher.settings[name]
  if value == nil then
    return default
  elseif not right(value) then
    error(`settings.{name} is {tostring(value)}; give {what}`, 2)
  end
  return value
end

local function whole(low, high)
  return function(v) return type(v) == "number" and v == math.floor(v) and v >= low and v <= high end
end

local max_users = setting("max_users", 1000, "a whole number of at least 1", whole(1, 1e9))
local max_room = setting("max_room_clients", math.huge, "a whole number of at least 1", whole(1, 1e9))
local holds = setting("holds", 2, "a whole number from 0 to 100", whole(0, 100))
local delay = setting("hold", "2s", "seconds or a text such as \"500ms\"", function(v) return (pcall(usher.hold, v)) end)
local code = setting("full_code", 503, "400 to 599, or 4000 to 4999", function(v)
  return whole(400, 599)(v) or whole(4000, 4999)(v)
end)

-- Users for each unit of weight, with one for every room that is on its way.
local function load(m)
  return (m.users + m.pending) / math.max(m.weight, 0.001)
end

local function has_room(m)
  return load(m) < max_users
end

local function owner_of(room, list)
  for _, m in list do
    if m.id == room.owner then
      return m
    end
  end
  return nil
end

local function wait_or_reject(call, reason)
  if (call.client and call.client.attempt or 1) <= holds then
    return usher.hold(delay)
  end
  usher.explain(reason)
  return usher.reject(code, reason)
end

function policy.admit(call)
  local room = call.room
  if room and room.clients >= max_room then
    return wait_or_reject(call, "the room is full")
  end
  if room and room.bound then
    local owner = owner_of(room, call.all_monoliths)
    if owner == nil or has_room(owner) or (call.client and call.client.reconnect) then
      return true
    end
    return wait_or_reject(call, "full")
  end
  -- With nobody there at all, waiting for one is the balancer's business.
  if #call.monoliths == 0 or #usher.filter(call.monoliths, has_room) > 0 then
    return true
  end
  return wait_or_reject(call, "full")
end

function policy.place(call)
  local list = usher.filter(call.monoliths, has_room)
  if #list == 0 and #call.monoliths > 0 then
    if call.cause ~= "lost" and call.cause ~= "move" then
      -- Admission counts those who come at once only when they are placed, so this is the last line. A creation or a
      -- request is answered with a status; a client that is in already is closed, with a code on which it comes back.
      return usher.reject(503, "full")
    end
    list = call.monoliths
  end
  local near = usher.nearest(list, call.room and call.room.region or call.region)
  return { usher.min_by(near, load), usher.min_by(list, load) }
end

return policy
