local policy = { name = "p" }
function policy.place(call)
  return usher.min_by(call.monoliths, function(m) return m.rooms + m.pending end)
end
return policy
