local t = usher.test
local policy = t.policy {}   -- without any settings, also where the configuration has some

local fleet = {
  { id = "c1", region = "cdg", rooms = 1 },
  { id = "e1", region = "ewr", rooms = 9 },
  { id = "e2", region = "ewr", rooms = 4 },
}

t.it("takes the one with the fewest rooms of its own region", function()
  t.equal(policy.place(t.place { region = "ewr", monoliths = fleet })[1], "e2")
end)

t.it("counts rooms that are on their way", function()
  local call = t.place { region = "ewr", monoliths = { { id = "a", region = "ewr", rooms = 3, pending = 3 }, { id = "b", region = "ewr", rooms = 5 } } }
  t.equal(policy.place(call)[1], "b")
end)

t.it("takes any region rather than none", function()
  t.equal(policy.place(t.place { region = "syd", monoliths = fleet }), "c1")
end)

t.it("never names one that is leaving", function()
  local call = t.place { region = "ewr", monoliths = { { id = "a", region = "ewr", draining = true }, { id = "b", region = "cdg" } } }
  t.equal(policy.place(call), "b")
end)

t.it("stays in its own region when told to", function()
  local only = t.policy { own_region_only = true }
  t.equal(only.place(t.place { region = "ewr", monoliths = fleet }), "e2")
  t.equal(only.place(t.place { region = "syd", monoliths = fleet }), "c1")
end)

t.it("has no answer when there is nobody", function()
  t.equal(policy.place(t.place { monoliths = {} }), nil)
end)
