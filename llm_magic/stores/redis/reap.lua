-- Closes calls of a process that is dead: what was sent stays booked in full.
-- Header: owner, dead (whether that is known, and not only a lease that has run out).
-- Asked: calls as {id, place of the call's key}. Gives how many were closed.
local closed = 0

local function reap()
    for _, each in ipairs(cjson.decode(ARGV[2])) do
        local id, key = each[1], KEYS[each[2]]
        local call = read_call(key)
        if not call or call.state == 'done' then
            redis.call('HDEL', OPEN, 'c' .. id)
        elseif call.owner == H.owner and call.state == 'held' then
            exchange(id, call.t, call.amount, nil)
            land(id, call)
            call.state, call.amount = 'void', { 0, 0, 0 }
            write_call(key, call)
            closed = closed + 1
        elseif call.owner == H.owner and call.state == 'sent' then
            land(id, call)
            call.state = 'lost'
            note(call, lost_numbers(call), 1)
            write_call(key, call)
            closed = closed + 1
        end
    end
    redis.call('HDEL', OPEN, 'l' .. H.owner)
end

if H.dead or not is_leased(H.owner) then
    surely(reap)
end
return closed
