local t = usher.test
local policy = t.policy { max_users = 10 }

local FULL = { { id = "a", region = "ewr", users = 10 }, { id = "b", region = "ewr", users = 12 } }
local FREE = { { id = "a", region = "ewr", users = 10 }, { id = "b", region = "ewr", users = 3 } }

local function admit(policy, monoliths, room, client)
  return policy.admit(t.admit { region = "ewr", room = room or "movie", client = client or {}, monoliths = monoliths })
end

t.describe("admit", function()
  t.it("lets everybody in while somebody has room", function()
    t.equal(admit(policy, FREE), true)
    t.equal(admit(policy, {}), true)
  end)

  t.it("holds, then rejects", function()
    t.equal(admit(policy, FULL), { hold = 2 })
    t.equal(admit(policy, FULL, nil, { attempt = 2 }), { hold = 2 })
    t.equal(admit(policy, FULL, nil, { attempt = 3 }), { reject = 503, reason = "full" })
  end)

  t.it("looks at the Monolith that has the room", function()
    t.equal(admit(policy, FREE, { name = "movie", bound = true, owner = "b" }), true)
    t.equal(admit(policy, FREE, { name = "movie", bound = true, owner = "a" }), { hold = 2 })
    t.equal(admit(policy, FREE, { name = "movie", bound = true, owner = "unknown" }), true)
  end)

  t.it("lets those in who come back", function()
    t.equal(admit(policy, FULL, { name = "movie", bound = true, owner = "a" }, { reconnect = true, attempt = 9 }), true)
    t.equal(admit(policy, FULL, nil, { reconnect = true, attempt = 9 }), { reject = 503, reason = "full" })
  end)

  t.it("has a limit for a room", function()
    local small = t.policy { max_room_clients = 2, holds = 0, full_code = 4009 }
    t.equal(admit(small, FREE, { name = "movie", clients = 1 }), true)
    t.equal(admit(small, FREE, { name = "movie", clients = 2 }), { reject = 4009, reason = "the room is full" })
  end)

  t.it("holds as often and as long as it is told to", function()
    local patient = t.policy { max_users = 10, hold = "500ms", holds = 5 }
    t.equal(admit(patient, FULL, nil, { attempt = 5 }), { hold = 0.5 })
    t.equal(admit(patient, FULL, nil, { attempt = 6 }), { reject = 503, reason = "full" })
  end)
end)

t.describe("place", function()
  local function place(monoliths, more)
    local given = more or {}
    given.region, given.monoliths = "ewr", monoliths
    return policy.place(t.place(given))
  end

  t.it("takes the one with the fewest users that is near and not full", function()
    t.equal(place(FREE)[1], "b")
    t.equal(place({ { id = "c", region = "cdg" }, { id = "e", region = "ewr", users = 9 } }), { "e", "c" })
    t.equal(place({ { id = "c", region = "cdg" }, { id = "e", region = "ewr", users = 10 } })[1], "c")
  end)

  t.it("counts what is on its way", function()
    t.equal(place({ { id = "a", region = "ewr", users = 4 }, { id = "b", region = "ewr", users = 3, pending = 2 } })[1], "a")
  end)

  t.it("turns new rooms away when all are full, and takes back those that were in", function()
    t.equal(place(FULL), { reject = 503, reason = "full" })
    t.equal(place(FULL, { cause = "create" }), { reject = 503, reason = "full" })
    t.equal(place(FULL, { cause = "lost" })[1], "a")
  end)

  t.it("gives a bigger share more users", function()
    t.equal(place({ { id = "big", region = "ewr", users = 15, weight = 2 } })[1], "big")
  end)

  t.it("has no answer when there is nobody", function()
    t.equal(place({}), {})
  end)
end)

t.it("names a wrong setting", function()
  for name, wrong in { max_users = 0, max_room_clients = 1.5, holds = 200, hold = "soon", full_code = 200 } do
    t.error(function() admit(t.policy { [name] = wrong }, FREE) end, `settings.{name} is {wrong}; give`)
  end
end)
