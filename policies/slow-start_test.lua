local t = usher.test
local policy = t.policy {}   -- without any settings, also where the configuration has some

local function place(policy, monoliths)
  return policy.place(t.place { region = "ewr", monoliths = monoliths })
end

-- How many of `count` rooms each gets when they come one after the other.
local function fill(policy, monoliths, count)
  local given = {}
  for _, m in monoliths do
    m.region, given[m.id] = "ewr", 0
  end
  for _ = 1, count do
    local chosen = place(policy, monoliths)[1]
    given[chosen.id] += 1
    for _, m in monoliths do
      if m.id == chosen.id then
        m.rooms = (m.rooms or 0) + 1
      end
    end
  end
  return given
end

t.it("does not give every new room to the one that has just started", function()
  local given = fill(policy, { { id = "fresh", age_s = 0 }, { id = "old", rooms = 20, age_s = 600 } }, 20)
  t.check(given.fresh <= 4, "the fresh one got " .. given.fresh)
  t.check(given.fresh > 0, "the fresh one got nothing")
end)

t.it("gives more the older it is", function()
  local before = -1
  for _, age in { 0, 10, 20, 30, 40, 50, 60 } do
    local given = fill(policy, { { id = "old", age_s = 600 }, { id = "young", age_s = age } }, 30)
    t.check(given.young >= before, `{given.young} rooms at {age} s, {before} before`)
    before = given.young
  end
  t.equal(before, 15)
end)

t.it("prefers its own region, and names another one behind it", function()
  local answer = place(policy, { { id = "c1", region = "cdg", age_s = 90 }, { id = "e1", region = "ewr", rooms = 9, age_s = 90 } })
  t.equal(answer, { "e1", "c1" })
  t.equal(place(policy, { { id = "c1", region = "cdg", age_s = 1 } }), "c1")
end)

t.it("gives a bigger share more rooms", function()
  local given = fill(policy, { { id = "big", weight = 3, age_s = 90 }, { id = "small", age_s = 90 } }, 40)
  t.equal(given.big, 30)
end)

t.it("rises as it is told to", function()
  local function young(settings)
    return fill(t.policy(settings), { { id = "old", age_s = 600 }, { id = "young", age_s = 15 } }, 50).young
  end
  local straight = young { aggression = 1 }
  t.check(young { aggression = 2 } > straight, "above 1 it rises fast")
  t.check(young { aggression = 0.5 } < straight, "below 1 it rises late")
  t.equal(young { slow_start_s = 0 }, 25)
end)

t.it("routes less to the one that has just started", function()
  local old = 0
  for seed = 1, 50 do
    local call = t.route { seed = seed, monoliths = { { id = "fresh", age_s = 0, inflight = 1 }, { id = "old", age_s = 600, inflight = 5 } } }
    old += if policy.route(call).id == "old" then 1 else 0
  end
  t.equal(old, 50)
end)

t.it("has no answer when there is nobody", function()
  t.equal(place(policy, {}), nil)
end)

t.it("names a wrong setting", function()
  t.error(function() t.policy { slow_start_s = -1 }.place(t.place {}) end, "settings.slow_start_s is .1; give a number of seconds")
  t.error(function() t.policy { aggression = "high" }.place(t.place {}) end, "settings.aggression is high; give a number above 0")
end)
