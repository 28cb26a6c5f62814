-- Gives id and owner of the open call for a key, or nothing.
local flying = redis.call('HGET', FLIGHTS, ARGV[2])
if not flying then
    return {}
end
local id, owner = string.match(flying, '^(.-)\n(.*)$')
if redis.call('HEXISTS', OPEN, id) == 1 and is_leased(owner) then
    return { id, owner }
end
return {}
