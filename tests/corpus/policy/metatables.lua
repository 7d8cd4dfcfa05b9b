return setmetatable({ name = "p" }, { __index = function(t, k) return t[k] end })
