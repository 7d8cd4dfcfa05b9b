-- Tests of tomorrow.lua: made-up calls for what is rare, and a recorded evening for what is common.

local t = usher.test
local policy = t.policy {}

local function call(near_rooms)
  return t.place {
    room = { name = "movie", region = "cdg" }, region = "ewr",
    monoliths = { { id = "c1", region = "cdg", rooms = near_rooms }, { id = "e1", region = "ewr", rooms = 0 } },
  }
end

t.it("goes where the first member is", function()
  t.equal(policy.place(call(30)), "c1")
end)

t.it("leaves a region that is much fuller than another", function()
  t.equal(policy.place(call(31)), "e1")
end)

-- A part of the evening is enough here, and leaves time: a swap waits 10 s for these tests, on whatever machine it is.
t.trace("evening.trace.jsonl.zst", { hook = "place", limit = 300 }, function(d)
  t.check(d.choice, "somebody takes every room")
  t.check(not d.choice.draining, "never a draining Monolith")
end)

t.it("moves a part of the evening, and fails on none of it", function()
  local replayed = t.replay("evening.trace.jsonl.zst", { hook = "place", limit = 300 })
  t.equal(replayed.faults, 0)
  t.check(replayed.changed > 0, "it decides nothing differently")
end)
