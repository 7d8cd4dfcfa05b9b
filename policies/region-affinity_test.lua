local t = usher.test
local policy = t.policy {}   -- without any settings, also where the configuration has some

t.it("keeps a room in its own region", function()
  local call = t.place { room = "movie", region = "cdg", monoliths = { { id = "e1", region = "ewr" }, { id = "c1", region = "cdg", rooms = 90 } } }
  t.equal(policy.place(call), "c1")
end)

t.it("follows the first member, not the balancer", function()
  local call = t.place {
    room = { name = "movie", region = "cdg" }, region = "ewr",
    monoliths = { { id = "e1", region = "ewr" }, { id = "c1", region = "cdg", rooms = 90 } },
  }
  t.equal(policy.place(call), "c1")
end)

t.it("falls back to the balancer's region where the member's is unknown", function()
  local call = t.place {
    room = { name = "movie", region = "nowhere" }, region = "ewr",
    monoliths = { { id = "a", region = "cdg" }, { id = "b", region = "ewr", rooms = 5 } },
  }
  t.equal(policy.place(call), "b")
end)

t.it("takes any region rather than none", function()
  t.equal(policy.place(t.place { region = "syd", monoliths = { { id = "a", region = "cdg" } } }), "a")
end)

t.it("routes to the user's region", function()
  local call = t.route { region = "ewr", request = { region = "cdg" }, monoliths = { { id = "a", region = "cdg" }, { id = "b", region = "ewr" } } }
  t.equal(policy.route(call), "a")
end)
