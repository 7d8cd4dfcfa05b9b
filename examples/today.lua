-- The policy that the example begins with: the fewest rooms, wherever that is.

local policy = { name = "today" }

function policy.place(call)
  usher.explain("fewest rooms anywhere")
  return usher.min_by(call.monoliths, "rooms")
end

return policy
