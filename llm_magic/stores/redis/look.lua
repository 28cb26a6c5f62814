-- Gives each process that holds something, and whether its lease has run out.
local found = {}
local stored = redis.call('HGETALL', LEASES)
for field = 1, #stored, 2 do
    found[#found + 1] = { stored[field], tonumber(stored[field + 1]) <= now and 1 or 0 }
end
return found
