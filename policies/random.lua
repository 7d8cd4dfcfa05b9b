-- Anybody, with equal chances. Choose it for tests and as a baseline to compare other policies with.
--
-- settings.own_region_only = true: only the Monoliths of the balancer's own region, when there is at least one.

local policy = { name = "random", api = 1 }

local function any(call)
  local list = call.monoliths
  if usher.settings.own_region_only then
    local own = usher.in_region(list)
    if #own > 0 then
      list = own
    end
  end
  if #list > 0 then
    return list[usher.random(#list)]
  end
  return nil
end

policy.place = any
policy.route = any

return policy
