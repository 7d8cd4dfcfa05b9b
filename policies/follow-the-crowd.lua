-- Moves a room to the region of most of its members, a few rooms at a time. Choose it when rooms live long and their
-- members change: a room stays where its first member put it, also when everybody who joined since is far away. It needs
-- policy.rebalance_every; handover.rate paces what it asks for.
--
-- settings.max_moves = 10: moves of one call.
-- settings.majority = 0.5: a room moves for a region that has more than this share of its members.
-- settings.min_clients = 1: rooms with fewer members stay.
-- settings.min_age_s = 0: rooms that were loaded more recently stay. A move loads a room anew, so this is also how long
-- it stays after one.
--
-- Where the region of the crowd has no Monolith, the nearest region counts. Those that gain most go first. New rooms go
-- near their first member, as with `region-affinity`.

local policy = { name = "follow-the-crowd", api = 1 }

local function setting(name, default, what, right)
  local value = usher.settings[name]
  if value == nil then
    return default
  elseif not right(value) then
    error(`settings.{name} is {tostring(value)}; give {what}`, 2)
  end
  return value
end

local function whole(v)
  return type(v) == "number" and v == math.floor(v) and v >= 0
end

local max_moves = setting("max_moves", 10, "a whole number, 0 or more", whole)
local majority = setting("majority", 0.5, "a share from 0.5 to 1, without the 1", function(v)
  return type(v) == "number" and v >= 0.5 and v < 1
end)
local min_clients = setting("min_clients", 1, "a whole number, 0 or more", whole)
local min_age = setting("min_age_s", 0, "a number of seconds, 0 or more", function(v) return type(v) == "number" and v >= 0 end)

-- The region of the crowd and how many are there; nil without a clear majority.
local function crowd(room)
  local all = 0
  for _, members in room.regions do
    all += members
  end
  if all < math.max(min_clients, 1) then
    return nil, 0
  end
  for region, members in room.regions do
    if members > majority * all then
      return region, members
    end
  end
  return nil, 0
end

-- The Monoliths that are nearest to a region, for each region once in a call.
local function near_of(call)
  local known = {}
  return function(region)
    if known[region] == nil then
      local own = usher.in_region(call.monoliths, region)
      known[region] = if #own > 0 then own else usher.nearest(call.monoliths, region)
    end
    return known[region]
  end
end

function policy.rebalance(call)
  local region_of = {}
  for _, m in call.all_monoliths do
    region_of[m.id] = m.region
  end
  local near = near_of(call)
  local wishes = {}
  for _, room in call.rooms or {} do
    local home, members = crowd(room)
    local here = region_of[room.owner]
    -- Someone else decides about rooms whose Monolith is unknown, and those that are young have just been placed.
    if home and here and here ~= home and (room.age_s or math.huge) >= min_age then
      local list = near(home)
      -- The whole list stands for "no distance is known": then there is nothing to gain.
      if #list > 0 and list ~= call.monoliths and list[1].region ~= here then
        wishes[#wishes + 1] = { room = room, list = list, gain = members - (room.regions[here] or 0) }
      end
    end
  end
  table.sort(wishes, function(a, b)
    if a.gain ~= b.gain then
      return a.gain > b.gain
    end
    return a.room.name < b.room.name
  end)
  -- Rooms that this call sends somewhere count there, or all would go to the same Monolith.
  local sent = {}
  local function load(m)
    return (m.rooms + m.pending + (sent[m.id] or 0)) / math.max(m.weight, 0.001)
  end
  local moves = {}
  for at = 1, math.min(#wishes, max_moves) do
    local wish = wishes[at]
    local to = usher.min_by(wish.list, load)
    sent[to.id] = (sent[to.id] or 0) + 1
    moves[at] = usher.move(wish.room, to)
  end
  if #wishes > #moves then
    usher.explain(#wishes - #moves, "rooms wait for the next call")
  end
  return moves
end

local function rooms(m)
  return m.rooms + m.pending
end

function policy.place(call)
  local home = call.room and call.room.region or call.region
  local near = usher.in_region(call.monoliths, home)
  if #near == 0 then
    near = usher.nearest(call.monoliths, home)
  end
  return { usher.min_by(near, rooms), usher.min_by(call.monoliths, rooms) }
end

return policy
