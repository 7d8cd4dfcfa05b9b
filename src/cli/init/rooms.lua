-- Where new rooms go, and who serves requests that name no room.
--
-- settings.max_rooms = 200: from so many rooms on a Monolith is full, and the next nearest region is used.
--
-- Editors know the types: luau-lsp analyze --definitions=usher.d.luau rooms.lua

local policy = { name = "rooms", api = 1 }

local max_rooms = usher.settings.max_rooms or 200
if type(max_rooms) ~= "number" or max_rooms < 1 then
  error(`settings.max_rooms is {tostring(max_rooms)}; give a number of at least 1`)
end

local function load(m)
  -- Rooms that are on their way count at once, or everybody would go to the one that reported last.
  return m.rooms + m.pending
end

-- A room that nobody has: the emptiest Monolith of the nearest region that is not full, and a second choice.
function policy.place(call)
  local near = usher.spill(call.monoliths, max_rooms)
  usher.explain(#near, "can have the room")
  return { usher.min_by(near, load), usher.min_by(call.monoliths, load) }
end

-- A request that names no room: the less busy of two.
function policy.route(call)
  return usher.two_choices(call.monoliths, "inflight")
end

return policy
