-- The own region until its Monoliths carry settings.spill_at, then the nearest region that has room, and so on. Choose it
-- when a short way matters, but less than a Monolith that is not overloaded.
--
-- settings.spill_at = 100: the load from which on a Monolith is full; one of weight 2 takes twice as much.
-- settings.spill_by = "rooms": what is counted: "rooms" (those on their way included), "clients", "users", "inflight", or
-- the name of a number under [load] of the configuration. A Monolith that does not report the number is not full.
-- settings.spill_from = "balancer": whose region comes first: the "balancer"'s, or that of the "room"'s first member.
--
-- When all are full, the least loaded of all is taken: a limit that turns rooms away is `capacity`.

local policy = { name = "spill", api = 1 }

local function setting(name, default, what, right)
  local value = usher.settings[name]
  if value == nil then
    return default
  elseif not right(value) then
    error(`settings.{name} is {tostring(value)}; give {what}`, 2)
  end
  return value
end

local limit = setting("spill_at", 100, "a number above 0", function(v) return type(v) == "number" and v > 0 end)
local by = setting("spill_by", "rooms", "\"rooms\", \"clients\", \"users\", \"inflight\" or the name of a number of [load]", function(v)
  return type(v) == "string" and v ~= ""
end)
local from = setting("spill_from", "balancer", "\"balancer\" or \"room\"", function(v) return v == "balancer" or v == "room" end)

local FIELDS = { clients = true, users = true, inflight = true }

local function load(m)
  local carried
  if by == "rooms" then
    carried = m.rooms + m.pending
  elseif FIELDS[by] then
    -- Whoever comes with a placement on its way is not counted yet: at least the one who asked for it.
    carried = m[by] + m.pending
  else
    carried = m.load[by] or 0
  end
  return carried / math.max(m.weight, 0.001)
end

local function full(m)
  return load(m) >= limit
end

local function rooms(m)
  return (m.rooms + m.pending) / math.max(m.weight, 0.001)
end

function policy.place(call)
  local home = from == "room" and call.room and call.room.region or call.region
  local list = usher.spill(call.monoliths, full, home)
  local first = list[1]
  if first and full(first) then
    usher.explain("all are full, at", limit, by)
    return usher.min_by(list, load)
  end
  usher.explain("room for more in", first and first.region or "no region")
  return usher.min_by(list, rooms)
end

return policy
