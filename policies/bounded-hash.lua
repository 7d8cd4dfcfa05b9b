-- The same room on the same Monolith of the nearest region, nobody over settings.factor times the mean of that region.
-- Choose it when several balancers place rooms without knowing of each other, or Monoliths keep something warm for a
-- room, and users should stay near. `hash-ring` does the same over all regions, with the settings of ott-balancer.
--
-- The first choice is rendezvous hashing with bounded loads; behind it comes who would have the room were the bound, then
-- the first, not there: all balancers agree on the second choice too.
--
-- settings.factor = 1.25: the bound; 1 is the most even, larger ones move fewer rooms when the load changes.
-- settings.hash_over = "near": who takes part: "near" (the nearest region of the room's first member) or "all".

local policy = { name = "bounded-hash", api = 1 }

local function setting(name, default, what, right)
  local value = usher.settings[name]
  if value == nil then
    return default
  elseif not right(value) then
    error(`settings.{name} is {tostring(value)}; give {what}`, 2)
  end
  return value
end

local factor = setting("factor", 1.25, "a number of at least 1", function(v) return type(v) == "number" and v >= 1 end)
local over = setting("hash_over", "near", "\"near\" or \"all\"", function(v) return v == "near" or v == "all" end)

local function load(m)
  return m.rooms + m.pending
end

function policy.place(call)
  local list = call.monoliths
  if over == "near" then
    list = usher.nearest(list, call.room and call.room.region or call.region)
  end
  local name = call.room and call.room.name
  if not name then
    -- A room that has no name yet can go anywhere.
    return usher.min_by(list, load)
  end
  local first = usher.bounded(name, list, factor)
  local owner = usher.rendezvous(name, list)
  if first == owner then
    -- Only when the first does not answer is the second of any use, so it may be in another region.
    local others = usher.filter(call.monoliths, function(m) return m ~= first end)
    owner = usher.rendezvous(name, others)
  else
    usher.explain(owner and owner.id or "nobody", "has the room by hash and is over the bound")
  end
  return { first, owner }
end

return policy
