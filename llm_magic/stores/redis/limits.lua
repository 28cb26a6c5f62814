-- The limits that are asked for, and behind them those that were set for all kernels.
local function limits_of()
    local limits = H.limits
    for _, each in ipairs(H.shared) do
        local stored, own = redis.call('HGETALL', KEYS[each[2]]), {}
        for field = 1, #stored, 2 do
            local metric, length = string.match(stored[field], '(%d+) (%d+)')
            own[#own + 1] = { each[1], tonumber(metric), tonumber(length), tonumber(stored[field + 1]) }
        end
        table.sort(own, function(one, other)
            if one[2] ~= other[2] then
                return one[2] < other[2]
            end
            return one[3] < other[3]
        end)
        for _, limit in ipairs(own) do
            limits[#limits + 1] = limit
        end
        expire(KEYS[each[2]], YEAR)
    end
    for _, limit in ipairs(limits) do
        window(scopes[limit[1]], limit[3]).asked = now
    end
    return limits
end
