-- The policy that the example ends with: near the first member of the room, unless it is much fuller there than elsewhere.

local policy = { name = "tomorrow" }

-- So many rooms more than the emptiest Monolith may one have that is near.
local SLACK = 30

local function load(m)
  return m.rooms + m.pending
end

function policy.place(call)
  local home = call.room and call.room.region or call.region
  local near = usher.min_by(usher.nearest(call.monoliths, home), load)
  local emptiest = usher.min_by(call.monoliths, load)
  if near and emptiest and load(near) > load(emptiest) + SLACK then
    usher.explain("too full in", home)
    return emptiest
  end
  usher.explain("near", home)
  return near
end

return policy
