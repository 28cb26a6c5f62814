-- The limits that are asked for, and behind them those that were set for all kernels.
local function limits_of()
    local limits = H.limits
    for number, scope in ipairs(scopes) do
        for _, each in ipairs(scope.limits) do
            limits[#limits + 1] = { number, each[1], each[2], each[3] }
        end
    end
    for _, limit in ipairs(limits) do
        window(scopes[limit[1]], limit[3])[ASKED] = now
    end
    return limits
end
