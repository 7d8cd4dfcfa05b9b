local t = usher.test
local policy = t.policy {}   -- without any settings, also where the configuration has some

local function fleet(n)
  local list = {}
  for i = 1, n do
    list[i] = { id = "m" .. i, region = if i % 2 == 0 then "ewr" else "cdg", rooms = 10 }
  end
  return list
end

t.it("gives the same room the same Monolith", function()
  for i = 1, 20 do
    local room = "room-" .. i
    local first = policy.place(t.place { room = room, seed = 1, monoliths = fleet(5) })
    t.equal(policy.place(t.place { room = room, seed = 2, now = 99, monoliths = fleet(5) }), first)
  end
end)

t.it("moves only the rooms of the one that went", function()
  local steady = t.policy { factor = 0 }
  local moved = 0
  for i = 1, 60 do
    local room = "room-" .. i
    local before = steady.place(t.place { room = room, monoliths = fleet(5) })
    local after = steady.place(t.place { room = room, monoliths = fleet(4) })
    if before.id == "m5" then
      moved += 1
    else
      t.equal(after, before)
    end
  end
  t.check(moved > 0 and moved < 30, "about a fifth of the rooms was on the one that went, not " .. moved)
end)

t.it("passes over one that is full", function()
  for i = 1, 20 do
    local list = fleet(3)
    list[1].rooms = 100
    t.check(policy.place(t.place { room = "room-" .. i, monoliths = list }).id ~= "m1", "m1 is full")
  end
end)

t.it("stays in its own region when told to", function()
  local only = t.policy { own_region_only = true, weight = 5 }
  for i = 1, 20 do
    t.equal(only.place(t.place { room = "room-" .. i, region = "ewr", monoliths = fleet(6) }).region, "ewr")
  end
  t.check(only.place(t.place { room = "a", region = "syd", monoliths = fleet(2) }) ~= nil)
end)

t.it("places a room without a name", function()
  t.equal(policy.place(t.place { room = {}, monoliths = { { id = "a", rooms = 2 }, { id = "b", rooms = 1 } } }), "b")
end)
