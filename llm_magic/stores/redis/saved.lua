-- Adds free answers to the usage, once for each batch.
-- KEYS behind the scopes: usage of the user, of the kernel, and the batch's own.
-- Asked: {day, model, cell, hits, tokens, nanos}.
if redis.call('SET', KEYS[LAST + 3], '1', 'NX', 'PX', text(HOUR / 1000)) then
    for _, each in ipairs(cjson.decode(ARGV[2])) do
        local call = { day = each[1], model = each[2], cell = each[3] }
        note(call, { 0, 0, 0, 0, 0, 0, each[4], each[5], each[6] }, 1)
    end
    save()
end
