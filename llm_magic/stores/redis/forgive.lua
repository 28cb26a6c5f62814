-- What was used so far counts no longer in the one scope; what is open goes on counting.
local scope = scopes[1]
local left = {}
for _, entry in ipairs(redis.call('ZRANGE', scope.log, 0, -1)) do
    if redis.call('HEXISTS', OPEN, string.match(entry, '^%d+ %d+ %d+ (.*)$')) == 0 then
        left[#left + 1] = entry
    end
end
for first = 1, #left, 1000 do
    redis.call('ZREM', scope.log, unpack(left, first, math.min(first + 999, #left)))
end
for length in pairs(scope.windows) do
    redis.call('HDEL', scope.sums, text(length))
end
scope.windows = {}
window(scope, 0)
save()
