-- Looks whether what is stored can be understood: what the scopes have, whose sums were read already,
-- and the calls whose keys are named.
for _, scope in ipairs(scopes) do
    count({ 0, 0, 0 }, redis.call('ZRANGE', scope.log, 0, -1), 1)
end
for place = LAST + 1, #KEYS do
    read_call(KEYS[place])
end
