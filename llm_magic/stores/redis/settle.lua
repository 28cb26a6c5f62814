-- Books what calls used, or gives back what they held.
-- Header: owner, day. Asked: uses as {id, used, place of the call's key}; used is false for a call
-- that came to nothing, else {amount, model, input, output, cached, unpriced}.
local function numbers_of(used)
    return { used[1][1], used[3], used[4], used[5], used[1][3], used[6], 0, 0, 0 }
end

local function settle(id, key, used)
    local call = read_call(key)
    local fresh = not call or call.state == 'gone'
    if fresh then
        call = {
            state = 'gone', t = now, amount = { 0, 0, 0 }, key = '', model = '', cell = '',
            day = H.day, owner = H.owner,
        }
    end
    if call.state == 'done' or (call.state == 'void' and not used) then
        return
    end
    land(id, call)
    if call.state == 'lost' then
        note(call, lost_numbers(call), -1)
    end
    if not used then
        -- Of a call that is not known it is remembered: its hold may be on its way still, from a
        -- connection that was given up.
        exchange(id, call.t, call.amount, nil)
        call.state, call.amount = fresh and 'gone' or 'void', { 0, 0, 0 }
    else
        if fresh or call.state == 'void' then
            enter(id, call.t, used[1])
        else
            exchange(id, call.t, call.amount, used[1])
        end
        call.state = 'done'
        if used[2] ~= '' then
            call.model = used[2]
        end
        note(call, numbers_of(used), 1)
    end
    write_call(key, call)
end

surely(function()
    for _, use in ipairs(cjson.decode(ARGV[2])) do
        settle(use[1], KEYS[use[3]], use[2])
    end
end)
