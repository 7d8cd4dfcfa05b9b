local t = usher.test
local policy = t.policy {}   -- without any settings, also where the configuration has some

local FLEET = {
  { id = "c1", region = "cdg", rooms = 5 },
  { id = "c2", region = "cdg", rooms = 4 },
  { id = "e1", region = "ewr" },
  { id = "x1", region = "cdg", draining = true },
}

local function room(name, owner, regions, more)
  local clients = 0
  for _, members in regions do
    clients += members
  end
  local made = more or {}
  made.name, made.owner, made.regions, made.clients = name, owner, regions, clients
  return made
end

local function moves(policy, rooms, fleet)
  return policy.rebalance(t.rebalance { region = "ewr", monoliths = fleet or FLEET, rooms = rooms })
end

t.describe("rebalance", function()
  t.it("moves a room to the region of most of its members", function()
    t.equal(moves(policy, { room("movie", "e1", { cdg = 2, ewr = 1 }) }), { { room = "movie", to = "c2" } })
  end)

  t.it("leaves rooms that are where most of their members are, or have no clear majority", function()
    t.equal(moves(policy, {
      room("home", "c1", { cdg = 2, ewr = 1 }),
      room("even", "e1", { cdg = 2, ewr = 2 }),
      room("three", "e1", { cdg = 2, ewr = 1, syd = 1 }),
      room("empty", "e1", {}),
      room("lost", "nobody", { cdg = 3 }),
      room("leaving", "x1", { cdg = 3 }),
    }), {})
  end)

  t.it("never moves more than its cap, and those first that gain most", function()
    local many = {}
    for i = 1, 30 do
      many[i] = room(string.format("room-%02d", i), "e1", { cdg = i, ewr = if i % 2 == 0 then 1 else nil })
    end
    t.equal(#moves(policy, many), 10)
    local three = moves(t.policy { max_moves = 3 }, many)
    t.equal({ three[1].room, three[2].room, three[3].room }, { "room-29", "room-30", "room-27" })
    t.equal(moves(t.policy { max_moves = 0 }, many), {})
  end)

  t.it("spreads what it sends", function()
    local many, count = {}, { c1 = 0, c2 = 0 }
    for i = 1, 9 do
      many[i] = room("room-" .. i, "e1", { cdg = 1 })
    end
    for _, move in moves(policy, many) do
      count[move.to] += 1
    end
    t.equal(count, { c1 = 4, c2 = 5 })
  end)

  t.it("goes to the nearest region where the crowd's has no Monolith", function()
    local fleet = { { id = "c1", region = "cdg" }, { id = "s1", region = "syd" } }
    local near = usher.nearest(fleet, "lhr")
    local expected = if #near == 1 then { { room = "movie", to = near[1].id } } else {}
    local far = if #near == 1 and near[1].id == "c1" then "s1" else "c1"
    t.equal(moves(policy, { room("movie", far, { lhr = 3 }) }, fleet), expected)
  end)

  t.it("stays where no distance is known", function()
    local fleet = { { id = "a", region = "here" }, { id = "b", region = "there" } }
    if #usher.nearest(fleet, "moon") == 2 then
      t.equal(moves(policy, { room("movie", "a", { moon = 3 }) }, fleet), {})
    end
    t.equal(moves(policy, { room("movie", "a", { there = 3 }) }, fleet), { { room = "movie", to = "b" } })
  end)

  t.it("leaves young and small rooms when told to", function()
    local patient = t.policy { min_age_s = 60, min_clients = 3 }
    t.equal(moves(patient, {
      room("young", "e1", { cdg = 3 }, { age_s = 59 }),
      room("small", "e1", { cdg = 2 }, { age_s = 90 }),
      room("ready", "e1", { cdg = 3 }, { age_s = 60 }),
    }), { { room = "ready", to = "c2" } })
  end)

  t.it("moves for a larger majority when told to", function()
    local strict = t.policy { majority = 0.75 }
    t.equal(moves(strict, { room("a", "e1", { cdg = 3, ewr = 1 }), room("b", "e1", { cdg = 4, ewr = 1 }) }), { { room = "b", to = "c2" } })
  end)

  t.it("has nothing to do without rooms or Monoliths", function()
    t.equal(moves(policy, {}), {})
    t.equal(policy.rebalance(t.rebalance { monoliths = FLEET }), {})
    t.equal(moves(policy, { room("movie", "e1", { cdg = 1 }) }, {}), {})
  end)
end)

t.it("places a new room near its first member", function()
  local call = t.place { room = { name = "movie", region = "cdg" }, region = "ewr", monoliths = FLEET }
  t.equal(policy.place(call)[1], "c2")
end)

t.it("names a wrong setting", function()
  t.error(function() t.policy { max_moves = 1.5 } end, "settings.max_moves is 1.5; give a whole number")
  t.error(function() t.policy { majority = 0.2 } end, "settings.majority is 0.2; give a share")
  t.error(function() t.policy { min_clients = "few" } end, "settings.min_clients is few")
  t.error(function() t.policy { min_age_s = false } end, "settings.min_age_s is false")
end)
