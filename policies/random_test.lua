local t = usher.test
local policy = t.policy {}   -- without any settings, also where the configuration has some

local fleet = { { id = "a", region = "ewr" }, { id = "b", region = "ewr" }, { id = "c", region = "cdg" } }

local function shares(policy, region)
  local count = { a = 0, b = 0, c = 0 }
  for seed = 1, 300 do
    count[policy.place(t.place { region = region, seed = seed * 7919, monoliths = fleet }).id] += 1
  end
  return count
end

t.it("chooses everybody now and then", function()
  for id, n in shares(policy, "ewr") do
    t.check(n > 50, `{id} was chosen {n} times of 300`)
  end
end)

t.it("depends on the seed alone", function()
  local call = t.place { seed = 42, monoliths = fleet }
  t.equal(policy.place(call), policy.place(call))
end)

t.it("stays in its own region when told to", function()
  local only = t.policy { own_region_only = true }
  t.equal(shares(only, "ewr").c, 0)
  t.check(shares(only, "syd").c > 0)
end)

t.it("has no answer when there is nobody", function()
  t.equal(policy.place(t.place { monoliths = {} }), nil)
end)
