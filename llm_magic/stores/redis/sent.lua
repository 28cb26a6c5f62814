-- The request is about to be sent. Gives the state of its call, or '' where it is not known.
-- KEYS: the call. (It changes nothing that counts, so no scope is looked at.)
local stored = redis.call('GET', KEYS[1])
if not stored then
    return ''
end
local call = cjson.decode(stored)
if call.state == 'held' then
    call.state = 'sent'
    redis.call('SET', KEYS[1], cjson.encode(call), 'KEEPTTL')
end
return call.state
