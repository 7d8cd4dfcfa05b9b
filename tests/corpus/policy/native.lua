--!native
--!optimize 2
@native local function f() end
return { place = f }
