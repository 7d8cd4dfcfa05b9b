-- The same room on the same Monolith, whichever balancer decides and however often, as far as the load allows. Choose it
-- when several balancers place rooms without knowing of each other, or when Monoliths keep something warm for a room.
--
-- One that comes or goes moves only its own rooms (rendezvous hashing); nobody gets more than settings.factor times the
-- mean (bounded loads; 1.25 unless set; 0 switches the bound off). settings.own_region_only = true: only the Monoliths
-- of the balancer's own region, when there is at least one. A ring's settings.weight (points for each Monolith) is
-- accepted and not needed: without a ring nothing depends on it.

local policy = { name = "hash-ring", api = 1 }

function policy.place(call)
  local list = call.monoliths
  if usher.settings.own_region_only then
    local own = usher.in_region(list)
    if #own > 0 then
      list = own
    end
  end
  local name = call.room and call.room.name
  if not name then
    -- A room that has no name yet can go anywhere.
    return usher.min_by(list, function(m) return m.rooms + m.pending end)
  end
  local factor = usher.settings.factor or 1.25
  if factor == 0 then
    return usher.rendezvous(name, list)
  end
  return usher.bounded(name, list, math.max(factor, 1))
end

return policy
