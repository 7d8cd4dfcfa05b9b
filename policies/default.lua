-- Own region first, then the fewest rooms. Choose it when every Monolith is much like the others and users should stay
-- close to the balancer at whose edge they arrived. It is what usher does without any policy, written out.
--
-- settings.own_region_only = true: only the Monoliths of the balancer's own region, when there is at least one.

local policy = { name = "default", api = 1 }

local function load(m)
  -- Rooms that are on their way count at once, or everybody would go to the one that reported last.
  return m.rooms + m.pending
end

function policy.place(call)
  local near = usher.in_region(call.monoliths)
  if #near == 0 then
    near = call.monoliths
  elseif not usher.settings.own_region_only then
    -- The rest follows as second choice, should the first not answer in time.
    return { usher.min_by(near, load), usher.min_by(call.monoliths, load) }
  end
  return usher.min_by(near, load)
end

return policy
