-- Gives each process that holds something or has a lease, and whether that has run out. Also those
-- without one: who closed their calls was perhaps stopped in the middle of it.
local leases, found = {}, {}
local stored = redis.call('HGETALL', OPEN)
for place = 1, #stored, 2 do
    local kind, name = string.match(stored[place], '^([clf])(.*)$')
    if kind == 'l' then
        leases[name] = lapsed(stored[place + 1]) and 1 or 0
    elseif kind == 'c' then
        local owner = string.match(stored[place + 1], '^(.-)\n')
        if not owner then
            damaged()
        end
        leases[owner] = leases[owner] or 1
    end
end
for owner, has_lapsed in pairs(leases) do
    found[#found + 1] = { owner, has_lapsed }
end
return found
