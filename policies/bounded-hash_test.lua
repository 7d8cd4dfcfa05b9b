local t = usher.test
local policy = t.policy {}   -- without any settings, also where the configuration has some

local function fleet(n, region)
  local list = {}
  for i = 1, n do
    list[i] = { id = "m" .. i, region = region or "ewr", rooms = 10 }
  end
  return list
end

local function place(policy, room, monoliths, region)
  return policy.place(t.place { room = room, region = region or "ewr", monoliths = monoliths })
end

t.it("gives the same room the same Monolith and the same second choice", function()
  for i = 1, 20 do
    local room = "room-" .. i
    local first = policy.place(t.place { room = room, seed = 1, region = "ewr", monoliths = fleet(5) })
    t.equal(policy.place(t.place { room = room, seed = 2, now = 99, region = "ewr", monoliths = fleet(5) }), first)
    t.equal(#first, 2)
    t.check(first[1].id ~= first[2].id, "two choices")
  end
end)

t.it("moves only the rooms of the one that went", function()
  local moved = 0
  for i = 1, 60 do
    local room = "room-" .. i
    local before = place(policy, room, fleet(5))[1]
    local after = place(policy, room, fleet(4))[1]
    if before.id == "m5" then
      moved += 1
    else
      t.equal(after, before.id)
    end
  end
  t.check(moved > 0 and moved < 30, "about a fifth of the rooms was on the one that went, not " .. moved)
end)

t.it("names the one that goes next behind the first", function()
  for i = 1, 20 do
    local room = "room-" .. i
    local answer = place(policy, room, fleet(5))
    local rest = {}
    for _, m in fleet(5) do
      if m.id ~= answer[1].id then
        rest[#rest + 1] = m
      end
    end
    t.equal(place(policy, room, rest)[1], answer[2].id)
  end
end)

t.it("never goes over the bound", function()
  for _, factor in { 1, 1.25, 2 } do
    local bounded = t.policy { factor = factor }
    local list = fleet(4)
    local total = 0
    for _, m in list do
      m.rooms = 0
    end
    for i = 1, 60 do
      local chosen = place(bounded, "room-" .. i, list)[1]
      total += 1
      for _, m in list do
        if m.id == chosen.id then
          m.rooms += 1
          t.check(m.rooms <= math.ceil(factor * total / #list), `{m.id} has {m.rooms} of {total} at factor {factor}`)
        end
      end
    end
  end
end)

t.it("stays in the nearest region of the room, unless told otherwise", function()
  local list = fleet(4)
  list[3].region, list[4].region = "cdg", "cdg"
  local all, far = t.policy { hash_over = "all" }, 0
  for i = 1, 30 do
    local room = "room-" .. i
    t.equal(place(policy, room, list)[1].region, "ewr")
    t.equal(place(policy, { name = room, region = "cdg" }, list)[1].region, "cdg")
    far += if place(all, room, list)[1].region == "cdg" then 1 else 0
  end
  t.check(far > 5 and far < 25, "of 30 rooms over all regions " .. far .. " are far")
end)

t.it("places a room without a name", function()
  t.equal(place(policy, {}, { { id = "a", region = "ewr", rooms = 2 }, { id = "b", region = "ewr", rooms = 1 } }), "b")
end)

t.it("has one choice where there is one, and none where there is nobody", function()
  t.equal(place(policy, "movie", fleet(1)), { "m1" })
  t.equal(place(policy, "movie", {}), {})
end)

t.it("names a wrong setting", function()
  t.error(function() t.policy { factor = 0.5 }.place(t.place {}) end, "settings.factor is 0.5; give a number of at least 1")
  t.error(function() t.policy { hash_over = "some" }.place(t.place {}) end, "settings.hash_over is some")
end)
