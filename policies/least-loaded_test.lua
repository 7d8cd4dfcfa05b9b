local t = usher.test
local policy = t.policy {}   -- without any settings, also where the configuration has some

local function place(monoliths)
  for _, m in monoliths do
    m.age_s = m.age_s or 60
  end
  return policy.place(t.place { region = "ewr", monoliths = monoliths })
end

t.it("takes the one with the fewest rooms, wherever it is", function()
  t.equal(place { { id = "e1", region = "ewr", rooms = 2 }, { id = "c1", region = "cdg", rooms = 1 } }, "c1")
end)

t.it("gives a bigger share more rooms", function()
  t.equal(place { { id = "big", rooms = 5, weight = 4 }, { id = "small", rooms = 2 } }, "big")
end)

t.it("takes the first of equals", function()
  t.equal(place { { id = "b" }, { id = "a" } }, "a")
end)

t.it("fills one that has just started slowly", function()
  t.equal(place { { id = "fresh", rooms = 0, age_s = 1 }, { id = "old", rooms = 3 } }, "old")
  t.equal(place { { id = "fresh", rooms = 0, age_s = 30 }, { id = "old", rooms = 3 } }, "fresh")
end)

t.it("routes a request to the less busy of two", function()
  local call = t.route { monoliths = { { id = "a", inflight = 7 }, { id = "b", inflight = 1 } } }
  t.equal(policy.route(call), "b")
end)
