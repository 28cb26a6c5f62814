-- What was used so far counts no longer in the one scope; what is open goes on counting.
local scope, kept = scopes[1], {}
local stored = redis.call('HGETALL', OPEN)
for place = 1, #stored, 2 do
    if string.sub(stored[place], 1, 1) == 'c' then
        local entry = string.match(stored[place + 1], '^[^\n]*\n[^\n]*\n(.*)$') or damaged()
        local moment = redis.call('ZSCORE', scope.log, entry)
        if moment then
            kept[#kept + 1] = moment
            kept[#kept + 1] = entry
        end
    end
end
redis.call('UNLINK', scope.log)
for first = 1, #kept, 1000 do
    redis.call('ZADD', scope.log, unpack(kept, first, math.min(first + 999, #kept)))
end
scope.windows, scope.pardon, scope.entries, scope.begins = {}, now, #kept / 2, true
window(scope, 0)
-- What comes in the same moment counts.
now = now + 1
save()
