-- The fewest rooms anywhere, whatever the region. Choose it when all Monoliths are near each other, or when an even
-- spread matters more than a short way.

local policy = { name = "least-loaded", api = 1 }

function policy.place(call)
  -- A share of 2 takes twice the rooms; one that has just started is filled slowly, over its first half minute.
  return usher.min_by(call.monoliths, function(m)
    return (m.rooms + m.pending + 1) / (math.max(m.weight, 0.001) * usher.slow_start(m, usher.settings.slow_start_s or 30))
  end)
end

function policy.route(call)
  return usher.two_choices(call.monoliths, "inflight")
end

return policy
