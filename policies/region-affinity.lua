-- Near the people of the room: the region at whose edge its first member arrived, else the nearest. Choose it when one
-- balancer serves users of several regions, so that its own region says little about them.

local policy = { name = "region-affinity", api = 1 }

local function load(m)
  return m.rooms + m.pending
end

function policy.place(call)
  local home = call.room and call.room.region or call.region
  local near = usher.nearest(call.monoliths, home)
  if #near == #call.monoliths then
    -- No distance is known, or all of them are in one region: the balancer's own region is the next best guess.
    local own = usher.in_region(call.monoliths)
    near = if #own > 0 then own else near
  end
  usher.explain("room of", home, "goes to one of", #near)
  return usher.min_by(near, load)
end

function policy.route(call)
  local home = call.request and call.request.region or call.region
  return usher.min_by(usher.nearest(call.monoliths, home), "inflight")
end

return policy
