local t = usher.test
local policy = t.policy {}   -- without any settings, also where the configuration has some

local function fleet(ewr, iad, cdg)
  return { { id = "c1", region = "cdg", rooms = cdg }, { id = "e1", region = "ewr", rooms = ewr }, { id = "i1", region = "iad", rooms = iad } }
end

-- The nearest of two regions, as the configuration has distances.
local function nearer(monoliths)
  return usher.nearest({ monoliths[1], monoliths[3] }, "ewr")[1]
end

local function place(policy, monoliths, more)
  local given = more or {}
  given.region = given.region or "ewr"
  given.monoliths = monoliths
  return policy.place(t.place(given))
end

t.it("stays in its own region until the limit", function()
  t.equal(place(policy, fleet(0, 0, 0)), "e1")
  t.equal(place(policy, fleet(99, 0, 0)), "e1")
end)

t.it("goes to the nearest region with room, then to the next", function()
  local list = fleet(100, 50, 50)
  local first = nearer(list)
  t.equal(place(policy, list), first.id)
  first.rooms = 100
  t.equal(place(policy, list), if first.id == "i1" then "c1" else "i1")
end)

t.it("takes the least loaded of all when all are full", function()
  t.equal(place(policy, fleet(140, 120, 130)), "i1")
end)

t.it("counts rooms that are on their way", function()
  local list = fleet(90, 0, 0)
  list[2].pending = 10
  t.equal(place(policy, list), nearer(list).id)
end)

t.it("takes the emptiest of a region", function()
  t.equal(place(policy, { { id = "a", region = "ewr", rooms = 7 }, { id = "b", region = "ewr", rooms = 3 } }), "b")
end)

t.it("gives a bigger share more rooms", function()
  t.equal(place(policy, { { id = "big", region = "ewr", rooms = 150, weight = 2 }, { id = "c1", region = "cdg" } }), "big")
end)

t.it("has a limit to set", function()
  local low = t.policy { spill_at = 5 }
  t.equal(place(low, fleet(4, 0, 0)), "e1")
  t.equal(place(low, fleet(5, 0, 0)), nearer(fleet(5, 0, 0)).id)
end)

t.it("counts what it is told to count", function()
  local users = t.policy { spill_at = 50, spill_by = "users" }
  t.equal(place(users, { { id = "e1", region = "ewr", users = 50 }, { id = "i1", region = "iad", rooms = 500 } }), "i1")
  local lag = t.policy { spill_at = 0.2, spill_by = "lag" }
  t.equal(place(lag, { { id = "e1", region = "ewr", load = { lag = 0.5 } }, { id = "i1", region = "iad", load = { lag = 0.01 } } }), "i1")
  t.equal(place(lag, { { id = "e1", region = "ewr" }, { id = "i1", region = "iad" } }), "e1", "no number is no load")
end)

t.it("follows the first member when told to", function()
  local room = t.policy { spill_from = "room" }
  t.equal(place(room, fleet(0, 0, 0), { room = { name = "movie", region = "cdg" } }), "c1")
end)

t.it("has no answer when there is nobody", function()
  t.equal(place(policy, {}), nil)
end)

t.it("names a wrong setting", function()
  t.error(function() t.policy { spill_at = "many" }.place(t.place {}) end, "settings.spill_at is many; give a number above 0")
  t.error(function() t.policy { spill_at = 0 }.place(t.place {}) end, "settings.spill_at is 0")
  t.error(function() t.policy { spill_by = 7 }.place(t.place {}) end, "settings.spill_by is 7")
  t.error(function() t.policy { spill_from = "moon" }.place(t.place {}) end, "settings.spill_from is moon")
end)
