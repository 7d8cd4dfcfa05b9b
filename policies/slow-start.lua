-- The own region, the fewest rooms, and a Monolith that has just started gets its share little by little. Choose it when
-- Monoliths come and go often (deploys, autoscaling) and one that is cold, or that everybody was just moved away from,
-- must not be given every new room at once because it is the emptiest.
--
-- settings.slow_start_s = 60: seconds until a Monolith has its full share.
-- settings.aggression = 1: how the share rises: share = (age / slow_start_s) ^ (1 / aggression), at least 0.1, as Envoy's
-- slow start has it. 1 is a straight line; above 1 it rises fast at first, below 1 it rises late.

local policy = { name = "slow-start", api = 1 }

local function setting(name, default, what, right)
  local value = usher.settings[name]
  if value == nil then
    return default
  elseif not right(value) then
    error(`settings.{name} is {tostring(value)}; give {what}`, 2)
  end
  return value
end

local seconds = setting("slow_start_s", 60, "a number of seconds, 0 or more", function(v) return type(v) == "number" and v >= 0 end)
local aggression = setting("aggression", 1, "a number above 0", function(v) return type(v) == "number" and v > 0 end)

local function share(m)
  local ramp = 1
  if m.age_s < seconds then
    ramp = math.max(0.1, (m.age_s / seconds) ^ (1 / aggression))
  end
  return math.max(m.weight, 0.001) * ramp
end

function policy.place(call)
  local region = call.region
  local near, near_load, any, any_load = nil, math.huge, nil, math.huge
  for _, m in call.monoliths do
    -- One more than there is, or the share of an empty one would not matter.
    local load = (m.rooms + m.pending + 1) / share(m)
    if load < any_load then
      any, any_load = m, load
    end
    if load < near_load and m.region == region then
      near, near_load = m, load
    end
  end
  if near == nil then
    return any
  end
  return { near, any }
end

function policy.route(call)
  return usher.two_choices(call.monoliths, function(m) return (m.inflight + 1) / share(m) end)
end

return policy
