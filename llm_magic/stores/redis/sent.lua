-- The request is about to be sent. Gives the state of its call, or '' where it is not known.
-- KEYS: the call. (It changes nothing that counts, so no scope is looked at.)
local stored = redis.call('GET', KEYS[1])
if not stored then
    return ''
end
local call = cmsgpack.unpack(stored)
if type(call) ~= 'table' or type(call[1]) ~= 'string' then
    error('what is stored is damaged')
end
if call[1] == 'held' then
    call[1] = 'sent'
    redis.call('SET', KEYS[1], cmsgpack.pack(call), 'KEEPTTL')
end
return call[1]
