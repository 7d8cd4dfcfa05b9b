local t = usher.test
local policy = t.policy()

-- What a test leaves out has a default: `rooms` is 0, `region` is the balancer's.
t.it("keeps a room in the balancer's region", function()
  local call = t.place {
    region = "ewr",
    monoliths = { { id = "e1", region = "ewr", rooms = 90 }, { id = "c1", region = "cdg" } },
  }
  t.equal(policy.place(call)[1], "e1")
end)

t.it("goes to the next region when its own is full", function()
  local call = t.place {
    region = "ewr",
    monoliths = { { id = "e1", region = "ewr", rooms = 199, pending = 1 }, { id = "c1", region = "cdg" } },
  }
  t.equal(policy.place(call)[1], "c1")
end)

t.it("has a limit to set", function()
  local small = t.policy { max_rooms = 2 }
  local call = t.place {
    region = "ewr",
    monoliths = { { id = "e1", region = "ewr", rooms = 2 }, { id = "c1", region = "cdg" } },
  }
  t.equal(small.place(call)[1], "c1")
end)

t.it("names a wrong setting", function()
  t.error(function() t.policy { max_rooms = "many" } end, "settings.max_rooms is many")
end)

t.it("routes to the less busy of two", function()
  local call = t.route { monoliths = { { id = "a", inflight = 7 }, { id = "b", inflight = 1 } } }
  t.equal(policy.route(call), "b")
end)
