-- Own region first, then the fewest rooms. Choose it when every Monolith is much like the others and users should stay
-- close to the balancer at whose edge they arrived. It is what usher does without any policy, written out: a Monolith that has
-- been there for less than 30 s counts as fuller than it is, so that one that has just come back is not flooded.
--
-- settings.own_region_only = true: only the Monoliths of the balancer's own region, when there is at least one.

local policy = { name = "default", api = 1 }

local own_region_only = usher.settings.own_region_only

function policy.place(call)
  -- One pass instead of several helpers: this is asked for every room that nobody has.
  local region = call.region
  local near, near_load, any, any_load = nil, math.huge, nil, math.huge
  for _, m in call.monoliths do
    -- Rooms that are on their way count at once, or everybody would go to the one that reported last.
    local load = m.rooms + m.pending
    if m.age_s < 30 then
      load /= math.max(m.age_s / 30, 0.1)
    end
    if load < any_load then
      any, any_load = m, load
    end
    if load < near_load and m.region == region then
      near, near_load = m, load
    end
  end
  if near == nil or own_region_only then
    return near or any
  end
  -- The rest follows as second choice, should the first not answer in time.
  return { near, any }
end

return policy
