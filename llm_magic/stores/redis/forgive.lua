-- What was used so far counts no longer in the one scope; what is open goes on counting.
local scope, open = scopes[1], {}
for _, field in ipairs(redis.call('HKEYS', OPEN)) do
    open[field] = true
end
local kept = {}
local entries = redis.call('ZRANGE', scope.log, 0, -1, 'WITHSCORES')
for place = 1, #entries, 2 do
    local id = string.match(entries[place], '^%d+ %d+ %d+ (.*)$')
    if open['c' .. (id or damaged())] then
        kept[#kept + 1] = entries[place + 1]
        kept[#kept + 1] = entries[place]
    end
end
redis.call('UNLINK', scope.log)
for first = 1, #kept, 1000 do
    redis.call('ZADD', scope.log, unpack(kept, first, math.min(first + 999, #kept)))
end
scope.windows, scope.pardon, scope.entered = {}, now, true
window(scope, 0)
-- What comes in the same moment counts.
now = now + 1
save()
