-- Wireshark's view of Gannet over TCP: the stream of the tcp fabric, and the messages of the three
-- channels in it. docs/wire.md describes the format and how to use this; field names are those of its
-- tables, as gannet.MESSAGE.FIELD, in lower case with underscores (gannet.grant.host_key).
--
-- Streams are known by their first bytes, or by a port among the preferences where a capture began in
-- the middle of one. Tested with Wireshark 4.0.

local gannet = Proto("gannet", "Gannet")

gannet.prefs.ports = Pref.range("TCP ports", "7470", "Ports at which streams are taken for Gannet's "
    .. "even where their beginning was not captured", 65535)
gannet.prefs.checksums = Pref.bool("Verify checksums of payload", true,
    "Frames are always verified; payload only has a checksum where a cluster is configured so")

-- Limits of the format ------------------------------------------------------------------------------

local GREETING_BYTES = 64
local CREDENTIAL_BYTES_MAX = 1024
local HEADER_BYTES = 32
local CONTROL_BYTES_MAX = 32 * 1024
local TRANSFER_BYTES_MAX = 8 * 1024 * 1024
-- Frames of the first version stay below it by far; beyond it a length is nonsense.
local PAYLOAD_BYTES_MAX = 64 * 1024 * 1024
local MESSAGE_BYTES_MAX = 8192
local MESSAGE_HEADER_BYTES = 8

-- CRC32C ---------------------------------------------------------------------------------------------

-- Lua 5.2 has a library of bit operations, later versions have operators that 5.2 cannot parse.
local bxor = bit32 and bit32.bxor or load("return function(a, b) return a ~ b end")()
local band = bit32 and bit32.band or load("return function(a, b) return a & b end")()

local crc_table = {}
for index = 0, 255 do
    local crc = index
    for _ = 1, 8 do
        local low = crc % 2
        crc = (crc - low) / 2
        if low == 1 then crc = bxor(crc, 0x82F63B78) end
    end
    crc_table[index] = crc
end

-- Of the bytes of a range.
local function crc32c(range)
    local bytes, crc = range:raw(), 0xFFFFFFFF
    for start = 1, #bytes, 4096 do
        for _, byte in ipairs({ bytes:byte(start, start + 4095) }) do
            local low = crc % 256
            crc = bxor((crc - low) / 256, crc_table[bxor(low, byte)])
        end
    end
    return bxor(crc, 0xFFFFFFFF)
end

-- What is wrong with a capture ------------------------------------------------------------------------

local experts = {}
local function finding_of(name, text, group, severity)
    local made = ProtoExpert.new("gannet." .. name, text, expert.group[group], expert.severity[severity])
    table.insert(experts, made)
    return made
end

local malformed = finding_of("malformed", "Malformed", "MALFORMED", "ERROR")
local incomplete = finding_of("incomplete", "Not all of a frame is there", "MALFORMED", "WARN")
local checksum_wrong = finding_of("checksum_wrong", "Wrong checksum", "CHECKSUM", "ERROR")
local unknown = finding_of("unknown", "Unknown to this dissector", "UNDECODED", "WARN")
local out_of_sequence =
    finding_of("out_of_sequence", "A frame is missing or repeated", "SEQUENCE", "WARN")
local lost = finding_of("lost", "Not the beginning of a frame", "SEQUENCE", "WARN")
local failed = finding_of("failed", "A status other than success", "RESPONSE_CODE", "NOTE")
local reserved_used = finding_of("reserved_used", "A reserved field is not zero", "PROTOCOL", "NOTE")
gannet.experts = experts

-- Kinds of fields -------------------------------------------------------------------------------------

-- By abbreviation, and in the order in which they were made.
local fields, all_fields = {}, {}

-- Makes a field for Wireshark, or finds the one that was made before.
local function field(abbr, make, ...)
    if not fields[abbr] then
        fields[abbr] = make(abbr, ...)
        table.insert(all_fields, fields[abbr])
    end
    return fields[abbr]
end

-- A number of so many bytes; `how` says what it means:
--   values    a table of its values' names
--   flags     { { bit, name }, ... }
--   unit      what it counts
--   base      base.HEX where the number has digits rather than a size
--   note      a function of the range that returns more text
local function number(bytes, how)
    return { bytes = bytes, is_number = true, how = how or {} }
end

local function u8(how) return number(1, how) end
local function u16(how) return number(2, how) end
local function u32(how) return number(4, how) end
local function u64(how) return number(8, how) end
local function i64(how) return number(8, { unit = how.unit, note = how.note, signed = true }) end
local uuid = { bytes = 16, is_uuid = true }
local function reserved(count) return { bytes = count, is_reserved = true } end

local makers = {
    [1] = ProtoField.uint8, [2] = ProtoField.uint16, [4] = ProtoField.uint32, [8] = ProtoField.uint64,
}

local function snake(name)
    return (name:gsub("(%l)(%u)", "%1_%2"):lower())
end

-- A part of messages, or the body of one: a list of { name, type }, one behind the other.
local function struct(name, members)
    local length = 0
    for _, member in ipairs(members) do
        local label, kind = member[1], member[2]
        local abbr = "gannet." .. snake(name) .. "." .. label
        if kind.is_number then
            local maker = kind.how.signed and ProtoField.int64 or makers[kind.bytes]
            member.field = field(abbr, maker, label, kind.how.base or base.DEC, kind.how.values)
            for _, flag in ipairs(kind.how.flags or {}) do
                flag[abbr] = field(abbr .. "." .. snake(flag[2]), ProtoField.bool, flag[2])
            end
            member.abbr = abbr
        elseif kind.is_uuid then
            member.field = field(abbr, ProtoField.guid, label)
        elseif kind.is_reserved then
            member.field = field(abbr, ProtoField.bytes, label)
        end
        member.at = length
        length = length + kind.bytes
    end
    return { name = name, members = members, bytes = length }
end

-- Adds a number's meaning to its line.
local function explain(item, member, range, context)
    local how = member[2].how
    if how.unit then item:append_text(" " .. how.unit) end
    if how.note then
        local note = how.note(range)
        if note then item:append_text(" (" .. note .. ")") end
    end
    if how.flags then
        local low, names, known = range(0, math.min(range:len(), 4)):le_uint(), {}, 0
        for _, flag in ipairs(how.flags) do
            local is_set = band(low, flag[1]) ~= 0
            item:add(flag[member.abbr], range, is_set)
            if is_set then
                table.insert(names, flag[2])
                known = known + flag[1]
            end
        end
        if #names > 0 then item:append_text(" (" .. table.concat(names, ", ") .. ")") end
        local high = range:len() == 8 and range(4, 4):le_uint() or 0
        if low ~= known or high ~= 0 then
            item:add_proto_expert_info(unknown, "Flags that this dissector does not know")
        end
    end
    if how.values and not how.values[range:le_uint()] then
        item:add_proto_expert_info(unknown, member[1] .. " has a value that this dissector does not know")
    end
    if how.is_status and range:le_uint() ~= 0 then
        item:add_proto_expert_info(failed, "Status: " .. (how.values[range:le_uint()] or "unknown"))
        context.status = how.values[range:le_uint()] or "unknown status"
    end
end

-- Shows the members of a struct that lies in `range`.
local function show(definition, range, tree, context)
    for _, member in ipairs(definition.members) do
        local kind = member[2]
        local part = range(member.at, kind.bytes)
        if kind.is_number then
            explain(tree:add_le(member.field, part), member, part, context)
        elseif kind.is_reserved then
            if part:bytes() ~= context.zeros(kind.bytes) then
                local item = tree:add(member.field, part)
                item:add_proto_expert_info(reserved_used)
            end
        elseif kind.is_uuid then
            tree:add(member.field, part)
        else
            local branch = tree:add(gannet, part, member[1] .. ": " .. kind.name)
            show(kind, part, branch, context)
            if kind.summary then branch:append_text(", " .. kind.summary(part)) end
        end
    end
end

local zeros = {}
local function zeros_of(count)
    if not zeros[count] then zeros[count] = ByteArray.new(string.rep("00", count)) end
    return zeros[count]
end

-- A whole number from a range, as text or, if it is small, as a number.
local function text_of(range) return tostring(range:le_uint64()) end

local function moment(range)
    local seconds = (range:le_int64() / 1000000000):tonumber()
    return os.date("!%Y-%m-%d %H:%M:%S UTC", seconds)
end

local function octal(range) return string.format("0%o", range:le_uint()) end

local all_ones = UInt64.new(0xFFFFFFFF, 0xFFFFFFFF)
local function block_note(range)
    if range:le_uint64() == all_ones then return "none: zeros" end
end

local function inode_note(range)
    return string.format("shard %d, number %s", range(6, 2):le_uint(),
        tostring(range:le_uint64():band(UInt64.new(0xFFFFFFFF, 0x0000FFFF))))
end

local function shard_note(range)
    if range:le_uint() == 0xFFFF then return "the session" end
end

-- Enumerations ----------------------------------------------------------------------------------------

local status_names = {
    [0] = "success", [1] = "operation not permitted", [2] = "no such file or directory",
    [5] = "input/output error", [11] = "resource temporarily unavailable", [12] = "out of memory",
    [13] = "permission denied", [16] = "device or resource busy", [17] = "file exists",
    [20] = "not a directory", [21] = "is a directory", [22] = "invalid argument",
    [24] = "too many open files", [27] = "file too large", [28] = "no space left on device", [31] = "too many links", [34] = "numerical result out of range",
    [36] = "file name too long",
    [39] = "directory not empty", [61] = "no data available",
    [95] = "operation not supported", [110] = "timed out",
    [116] = "stale file handle", [125] = "operation cancelled",
    [0x1000] = "WRONG_SHARD: the shard is served elsewhere",
    [0x1001] = "STALE_SET: the set of data servers has changed",
    [0x1002] = "RETRY: the attempt failed without effect",
    [0x1003] = "OUTCOME_UNKNOWN: the session was lost",
    [0x1004] = "BAD_SEQUENCE: the sequence does not fit the slot",
    [0x1005] = "PROTOCOL: protocol violation",
    [0x1006] = "VERSION: no common protocol version",
    [0x1007] = "FEATURE: a required feature is missing",
    [0x1008] = "BAD_TICKET: the session ticket is not valid",
    [0x1009] = "STALE_EPOCH: the session's epoch has passed",
    [0x100a] = "SESSION_GONE: the data session is gone",
    [0x100b] = "UNKNOWN_STORE: the data server does not have the store",
    [0x100c] = "ACCESS_REFUSED: remote access was refused",
    [0x100d] = "REVOKED: the grant was revoked",
    [0x100e] = "NOT_TRUSTED: the peer is not trusted",
    [0x100f] = "CHECKSUM: checksum mismatch",
    [0x1010] = "OTHER_FILE_SYSTEM: the data server belongs to another file system",
    [0x1046] = "UNKNOWN_IDENTITY: the identity is not known",
}
local status = u32({ values = status_names, is_status = true })
local name_operations = {
    "LOOKUP", "CREATE", "MKDIR", "UNLINK", "RMDIR", "RENAME", "READDIR", "LINK",
}
local name_flags = { { 1, "EXCLUSIVE" }, { 2, "NO_REPLACE" }, { 4, "EXCHANGE" },
    { 8, "OPEN_READ" }, { 16, "OPEN_WRITE" } }
local inode_operations = {
    "STAT", "OPEN", "FSYNC", "OPEN_READ", "OPEN_WRITE", "OPEN_READ_WRITE", "CLOSE",
}
local xattr_operations = { "GET", "SET", "LIST", "REMOVE" }
local grant_operations = { "READ", "WRITE", "ZERO" }
local yes_no = { [0] = "no", [1] = "yes" }
local roles = { [0] = "metadata-server reactor", [1] = "data server" }
local connection_kinds = { [0] = "HOST", "TARGET", "DATA_SESSION" }
local authentications = { [0] = "FABRIC: what the fabric knows of the peer" }
local file_types = { [0x8000] = "regular file", [0x4000] = "directory" }

local function features() return u64({ base = base.HEX, flags = { { 1, "MEMORY_WINDOWS" } } }) end
local function io_flags()
    return u16({ base = base.HEX,
        flags = { { 1, "COMPLETE_BY_METASERVER" }, { 2, "APPEND" }, { 4, "WINDOWS" } } })
end
local length_bytes = { unit = "bytes" }
local id = { base = base.HEX }
local nanoseconds = i64({ unit = "ns", note = moment })

-- Parts of messages -----------------------------------------------------------------------------------

local Handle = struct("Handle", {
    { "inode", u64({ base = base.HEX, note = inode_note }) },
    { "file_system", u32() },
    { "generation", u32() },
})
local RequestHeader = struct("RequestHeader", {
    { "shard", u16({ note = shard_note }) },
    { "slot", u16() },
    { "attempt", u32() },
    { "sequence", u64() },
})
function RequestHeader.summary(range)
    return string.format("shard %d slot %d sequence %s attempt %d", range(0, 2):le_uint(),
        range(2, 2):le_uint(), text_of(range(8, 8)), range(4, 4):le_uint())
end
local ReplyHeader = struct("ReplyHeader", {
    { "request", RequestHeader },
    { "status", status },
    { "reserved", reserved(4) },
})
local BufferRef = struct("BufferRef", {
    { "region", u32() },
    { "reserved", reserved(4) },
    { "offset", u64(length_bytes) },
})
local Window = struct("Window", {
    { "target", u32() },
    { "key", u32(id) },
    { "epoch", u64(id) },
    { "address", u64(id) },
})
local Attributes = struct("Attributes", {
    { "handle", Handle },
    { "size", u64() },
    { "allocated_bytes", u64(length_bytes) },
    { "atime_ns", nanoseconds },
    { "mtime_ns", nanoseconds },
    { "ctime_ns", nanoseconds },
    { "mode", u32({ note = octal }) },
    { "uid", u32() },
    { "gid", u32() },
    { "links", u32() },
})
local DirectoryEntry = struct("DirectoryEntry", {
    { "inode", u64({ base = base.HEX, note = inode_note }) },
    { "file_type", u32({ base = base.HEX, values = file_types }) },
    { "name_bytes", u16(length_bytes) },
    { "reserved", reserved(2) },
})
local CounterEntry = struct("CounterEntry", {
    { "value", u64() },
    { "name_bytes", u16(length_bytes) },
    { "reserved", reserved(6) },
})
local ConnectionEntry = struct("ConnectionEntry", {
    { "id", u64(id) },
    { "kind", u16({ values = connection_kinds }) },
    { "fabric_bytes", u16(length_bytes) },
    { "peer_bytes", u16(length_bytes) },
    { "reserved", reserved(2) },
})
local StoreInfo = struct("StoreInfo", {
    { "uuid", uuid },
    { "generation", u32() },
    { "block_bytes", u32(length_bytes) },
    { "blocks", u64() },
})
local RetiredRange = struct("RetiredRange", {
    { "first", u64() },
    { "last", u64() },
})
local Trailer = struct("Trailer", {
    { "request", RequestHeader },
    { "part", u16() },
    { "parts", u16() },
    { "total_bytes", u32(length_bytes) },
    { "end_of_file", u8({ values = yes_no }) },
    { "reserved", reserved(7) },
})

-- Tails -----------------------------------------------------------------------------------------------

-- What is left of a message behind its body, to be taken from the front.
local Tail = {}
Tail.__index = Tail

function Tail.new(range, at, tree, context)
    return setmetatable({ range = range, at = at, tree = tree, context = context }, Tail)
end

function Tail:left() return self.range:len() - self.at end

-- The next so many bytes; nothing, with a word about it, if there are not as many.
function Tail:take(count, what)
    if count > self:left() then
        if not self.is_short then
            self.tree:add_proto_expert_info(malformed, string.format(
                "Malformed: %s needs %d bytes, and %d are left of the message", what, count, self:left()))
        end
        self.is_short = true
        self.at = self.range:len()
        return nil
    end
    if count == 0 then return nil end
    local range = self.range(self.at, count)
    self.at = self.at + count
    return range
end

function Tail:show_bytes(name, count)
    local range = self:take(count, name)
    if range then
        self.tree:add(field("gannet." .. self.prefix .. "." .. name, ProtoField.bytes, name), range)
    end
end

function Tail:show_text(name, count)
    local range = self:take(count, name)
    if not range then return nil end
    local known = field("gannet." .. self.prefix .. "." .. name, ProtoField.string, name, base.UNICODE)
    self.tree:add_packet_field(known, range, ENC_UTF_8)
    return range:raw()
end

-- `count` parts of a message, `more` takes what follows each.
function Tail:show_parts(definition, count, more)
    for index = 0, count - 1 do
        local range = self:take(definition.bytes, definition.name .. " " .. index)
        if not range then return end
        local branch = self.tree:add(gannet, range, definition.name .. " " .. index)
        show(definition, range, branch, self.context)
        if more then more(range, branch) end
    end
end

function Tail:show_numbers(name, count, width)
    local known = field("gannet." .. self.prefix .. "." .. name, makers[width], name, base.DEC)
    for _ = 1, count do
        local range = self:take(width, name)
        if not range then return end
        self.tree:add_le(known, range)
    end
end

-- Names behind parts that say how long they are, in bytes from `at`.
function Tail:show_named_parts(definition, count, at)
    self:show_parts(definition, count, function(range, branch)
        local name = self:show_text("name", range(at, 2):le_uint())
        if name then branch:append_text(": " .. name) end
    end)
end

-- Connections, each with its two texts.
function Tail:show_connections(count)
    self:show_parts(ConnectionEntry, count, function(range, branch)
        local fabric = self:show_text("fabric", range(10, 2):le_uint())
        local peer = self:show_text("peer", range(12, 2):le_uint())
        branch:append_text(string.format(": %s %s", fabric or "", peer or ""))
    end)
end

-- So many addresses, each with its length in front and, if `has_reactor`, its reactor before that.
function Tail:show_addresses(count, has_reactor)
    for _ = 1, count do
        if has_reactor then self:show_numbers("reactor_of_address", 1, 2) end
        local length = self:take(2, "length of an address")
        if not length then return end
        self:show_text("address", length:le_uint())
    end
end

-- Fields of tails have to be known before any packet is looked at.
local function tail_field(message, name, make, ...)
    field("gannet." .. snake(message) .. "." .. name, make, name, ...)
end

-- Messages --------------------------------------------------------------------------------------------

local messages = {}

-- `summary` returns more text for the packet list, `tail` shows what follows the body.
local function message(kind, name, members, more)
    local definition = struct(name, members)
    definition.kind = kind
    for key, value in pairs(more or {}) do definition[key] = value end
    messages[kind] = definition
end

local function number_at(range, at, width) return range(at, width):le_uint() end

-- Handshake

tail_field("Hello", "credentials", ProtoField.bytes)
message(0x01, "Hello", {
    { "magic", u64({ base = base.HEX }) },
    { "version_min", u16() },
    { "version_max", u16() },
    { "authentication", u16({ values = authentications }) },
    { "credentials_bytes", u16(length_bytes) },
    { "features_offered", features() },
    { "features_required", features() },
    { "reserved", reserved(8) },
}, {
    tail = function(tail, body) tail:show_bytes("credentials", number_at(body, 14, 2)) end,
})
tail_field("Refusal", "text", ProtoField.string)
message(0x02, "Refusal", {
    { "status", status },
    { "version_min", u16() },
    { "version_max", u16() },
    { "features_required", features() },
}, {
    tail = function(tail) tail:show_text("text", tail:left()) end,
})

-- Operations channel

message(0x10, "HostHello", {
    { "session", u64(id) },
    { "instance", u64(id) },
    { "host", u64(id) },
    { "slots", u16() },
    { "uid", u32() },
    { "gid", u32() },
    { "reserved", reserved(6) },
})
tail_field("HostWelcome", "reactor_of_shard", ProtoField.uint8, base.DEC)
tail_field("HostWelcome", "address", ProtoField.string)
tail_field("HostWelcome", "reactor_of_address", ProtoField.uint16, base.DEC)
message(0x11, "HostWelcome", {
    { "version", u16() },
    { "shards", u16() },
    { "reactors", u16() },
    { "reactor", u16() },
    { "features", features() },
    { "term", u64() },
    { "file_system_uuid", uuid },
    { "slots", u16() },
    { "resumed", u16({ values = yes_no }) },
    { "request_bytes_max", u32(length_bytes) },
    { "block_bytes", u32(length_bytes) },
    { "lease_ms", u32({ unit = "ms" }) },
    { "map_version", u64() },
    { "requests_max", u32() },
    { "further_addresses", u16() },
    { "reserved", reserved(10) },
}, {
    tail = function(tail, body)
        tail:show_numbers("reactor_of_shard", number_at(body, 2, 2), 1)
        tail:show_addresses(number_at(body, 4, 2))
        tail:show_addresses(number_at(body, 68, 2), true)
    end,
})
tail_field("NameRequest", "name", ProtoField.string)
tail_field("NameRequest", "to_name", ProtoField.string)
message(0x20, "NameRequest", {
    { "header", RequestHeader },
    { "parent", Handle },
    { "to_parent", Handle },
    { "operation", u16({ values = name_operations }) },
    { "name_bytes", u16(length_bytes) },
    { "to_name_bytes", u16(length_bytes) },
    { "identity", u16() },
    { "flags", u32({ base = base.HEX, flags = name_flags }) },
    { "mode", u32({ note = octal }) },
    { "uid", u32() },
    { "gid", u32() },
    { "reply_bytes_max", u32(length_bytes) },
    { "open", u32() },
}, {
    summary = function(body) return name_operations[number_at(body, 48, 2)] end,
    tail = function(tail, body)
        tail:show_text("name", number_at(body, 50, 2))
        tail:show_text("to_name", number_at(body, 52, 2))
    end,
})
message(0x21, "InodeRequest", {
    { "header", RequestHeader },
    { "handle", Handle },
    { "operation", u16({ values = inode_operations }) },
    { "identity", u16() },
    { "open", u32() },
}, {
    summary = function(body) return inode_operations[number_at(body, 32, 2)] end,
})
message(0x22, "SetAttributes", {
    { "header", RequestHeader },
    { "handle", Handle },
    { "mask", u32({ base = base.HEX, flags = {
        { 1, "MODE" }, { 2, "UID" }, { 4, "GID" }, { 8, "ATIME" }, { 16, "MTIME" }, { 32, "SIZE" },
        { 64, "ATIME_NOW" }, { 128, "MTIME_NOW" },
    } }) },
    { "mode", u32({ note = octal }) },
    { "uid", u32() },
    { "gid", u32() },
    { "atime_ns", nanoseconds },
    { "mtime_ns", nanoseconds },
    { "size", u64(length_bytes) },
    { "identity", u16() },
    { "reserved", reserved(6) },
})

local function range_summary(body)
    return string.format("%d bytes at %s", number_at(body, 40, 4), text_of(body(32, 8)))
end

local function windows_tail(tail, body) tail:show_parts(Window, number_at(body, 68, 2)) end

local function io_members()
    return {
        { "header", RequestHeader },
        { "handle", Handle },
        { "offset", u64(length_bytes) },
        { "length", u32(length_bytes) },
        { "flags", io_flags() },
        { "buffers", u16() },
        { "buffer", BufferRef },
        { "crc32c", u32(id) },
        { "windows", u16() },
        { "identity", u16() },
    }
end
message(0x23, "Read", io_members(), { summary = range_summary, tail = windows_tail })
message(0x24, "Write", io_members(), { summary = range_summary, tail = windows_tail })
message(0x25, "ConnectTarget", {
    { "header", RequestHeader },
    { "target", u32() },
    { "reserved", reserved(4) },
})
message(0x26, "StatFs", { { "header", RequestHeader } })
message(0x27, "Stats", {
    { "header", RequestHeader },
    { "targets", u32({ values = yes_no }) },
    { "reserved", reserved(4) },
})
message(0x28, "Register", {
    { "region", u32() },
    { "target", u32() },
    { "epoch", u64(id) },
    { "address", u64(id) },
    { "length", u64(length_bytes) },
    { "key", u32(id) },
    { "reserved", reserved(12) },
})
message(0x29, "Unregister", {
    { "region", u32() },
    { "reserved", reserved(4) },
})
message(0x2a, "Cancel", { { "header", RequestHeader } })
message(0x51, "DeclareOpen", {
    { "handle", Handle },
    { "operation", u16({ values = inode_operations }) },
    { "identity", u16() },
    { "open", u32() },
}, {
    summary = function(body) return inode_operations[number_at(body, 16, 2)] end,
})
message(0x5e, "ReclaimComplete", { { "reserved", reserved(8) } })
tail_field("XattrRequest", "name", ProtoField.string)
tail_field("XattrRequest", "value", ProtoField.bytes)
message(0x52, "XattrRequest", {
    { "header", RequestHeader },
    { "handle", Handle },
    { "operation", u16({ values = xattr_operations }) },
    { "name_bytes", u16(length_bytes) },
    { "value_bytes", u16(length_bytes) },
    { "flags", u16({ base = base.HEX, flags = { { 1, "CREATE" }, { 2, "REPLACE" } } }) },
    { "identity", u16() },
    { "reserved", reserved(2) },
    { "reply_bytes_max", u32(length_bytes) },
}, {
    summary = function(body) return xattr_operations[number_at(body, 32, 2)] end,
    tail = function(tail, body)
        tail:show_text("name", number_at(body, 34, 2))
        tail:show_text("value", number_at(body, 36, 2))
    end,
})
tail_field("XattrReply", "value", ProtoField.bytes)
message(0x53, "XattrReply", {
    { "header", ReplyHeader },
    { "value_bytes", u32(length_bytes) },
    { "tail_bytes", u32(length_bytes) },
}, {
    tail = function(tail, body) tail:show_text("value", number_at(body, 28, 4)) end,
})
tail_field("SetIdentity", "group", ProtoField.uint32, base.DEC)
message(0x50, "SetIdentity", {
    { "identity", u16() },
    { "groups", u16() },
    { "uid", u32() },
    { "gid", u32() },
    { "reserved", reserved(4) },
}, {
    tail = function(tail, body) tail:show_numbers("group", number_at(body, 2, 2), 4) end,
})

tail_field("EntryReply", "target", ProtoField.uint32, base.DEC)
message(0x40, "EntryReply", {
    { "header", ReplyHeader },
    { "attributes", Attributes },
    { "consumed", u16(length_bytes) },
    { "targets", u16() },
    { "reserved", reserved(4) },
    { "reserved2", reserved(8) },
}, {
    tail = function(tail, body) tail:show_numbers("target", number_at(body, 98, 2), 4) end,
})
tail_field("DirectoryReply", "name", ProtoField.string)
message(0x41, "DirectoryReply", {
    { "header", ReplyHeader },
    { "count", u16() },
    { "end", u16({ values = yes_no }) },
    { "reserved", reserved(4) },
}, {
    tail = function(tail, body) tail:show_named_parts(DirectoryEntry, number_at(body, 24, 2), 12) end,
})
tail_field("IoReply", "target", ProtoField.uint32, base.DEC)
message(0x42, "IoReply", {
    { "header", ReplyHeader },
    { "offset", u64(length_bytes) },
    { "size", u64(length_bytes) },
    { "length", u32(length_bytes) },
    { "end_of_file", u16({ values = yes_no }) },
    { "targets", u16() },
    { "crc32c", u32(id) },
    { "reserved", reserved(4) },
}, {
    tail = function(tail, body) tail:show_numbers("target", number_at(body, 46, 2), 4) end,
})
tail_field("TargetReply", "address", ProtoField.string)
tail_field("TargetReply", "ticket", ProtoField.bytes)
message(0x43, "TargetReply", {
    { "header", ReplyHeader },
    { "target", u32() },
    { "address_bytes", u16(length_bytes) },
    { "ticket_bytes", u16(length_bytes) },
    { "epoch", u64(id) },
    { "further_addresses", u16() },
    { "reserved", reserved(6) },
}, {
    tail = function(tail, body)
        tail:show_text("address", number_at(body, 28, 2))
        tail:show_bytes("ticket", number_at(body, 30, 2))
        tail:show_addresses(number_at(body, 40, 2))
    end,
})
message(0x44, "StatFsReply", {
    { "header", ReplyHeader },
    { "blocks_total", u64() },
    { "blocks_used", u64() },
    { "inodes", u64() },
    { "targets", u32() },
    { "block_bytes", u32(length_bytes) },
    { "reserved", reserved(8) },
})
tail_field("StatsReply", "name", ProtoField.string)
tail_field("StatsReply", "fabric", ProtoField.string)
tail_field("StatsReply", "peer", ProtoField.string)
message(0x45, "StatsReply", {
    { "header", ReplyHeader },
    { "role", u16({ values = roles }) },
    { "count", u16() },
    { "index", u32() },
    { "last", u16({ values = yes_no }) },
    { "connections", u16() },
    { "reserved", reserved(4) },
}, {
    tail = function(tail, body)
        tail:show_named_parts(CounterEntry, number_at(body, 26, 2), 8)
        tail:show_connections(number_at(body, 34, 2))
    end,
})

-- Back control channel

tail_field("TargetHello", "address", ProtoField.string)
tail_field("TargetHello", "file_system_uuid", ProtoField.guid)
message(0x60, "TargetHello", {
    { "uuid", uuid },
    { "instance", u64(id) },
    { "address_bytes", u16(length_bytes) },
    { "stores", u16() },
    { "further_addresses", u16() },
    { "names_file_system", u16({ values = yes_no }) },
    { "reserved2", reserved(8) },
}, {
    tail = function(tail, body)
        tail:show_text("address", number_at(body, 24, 2))
        tail:show_parts(StoreInfo, number_at(body, 26, 2))
        tail:show_addresses(number_at(body, 28, 2))
        if number_at(body, 30, 2) ~= 0 then tail:show_bytes("file_system_uuid", 16) end
    end,
})
tail_field("TargetWelcome", "store", ProtoField.uint32, base.DEC)
tail_field("TargetWelcome", "address", ProtoField.string)
tail_field("TargetWelcome", "reactor_of_address", ProtoField.uint16, base.DEC)
tail_field("TargetWelcome", "file_system_uuid", ProtoField.guid)
message(0x61, "TargetWelcome", {
    { "version", u16() },
    { "reactors", u16() },
    { "reactor", u16() },
    { "stores", u16() },
    { "features", features() },
    { "term", u64() },
    { "target", u32() },
    { "grants_max", u32() },
    { "further_addresses", u16() },
    { "names_file_system", u16({ values = yes_no }) },
    { "reserved", reserved(4) },
}, {
    tail = function(tail, body)
        tail:show_numbers("store", number_at(body, 6, 2), 4)
        tail:show_addresses(number_at(body, 2, 2))
        tail:show_addresses(number_at(body, 32, 2), true)
        if number_at(body, 34, 2) ~= 0 then tail:show_bytes("file_system_uuid", 16) end
    end,
})
message(0x62, "Drain", {
    { "term", u64() },
    { "reserved", reserved(8) },
})
message(0x63, "Drained", {
    { "term", u64() },
    { "reserved", reserved(8) },
})
tail_field("SessionOpen", "ticket", ProtoField.bytes)
message(0x64, "SessionOpen", {
    { "session", u64(id) },
    { "epoch", u64(id) },
    { "ticket_bytes", u16(length_bytes) },
    { "reserved", reserved(14) },
}, {
    tail = function(tail, body) tail:show_bytes("ticket", number_at(body, 16, 2)) end,
})
message(0x65, "SessionReady", {
    { "session", u64(id) },
    { "epoch", u64(id) },
    { "status", status },
    { "reserved", reserved(4) },
})
message(0x66, "SessionClose", {
    { "session", u64(id) },
    { "epoch", u64(id) },
})
message(0x67, "SessionClosed", {
    { "session", u64(id) },
    { "epoch", u64(id) },
})
message(0x68, "Grant", {
    { "term", u64() },
    { "number", u64() },
    { "session", u64(id) },
    { "epoch", u64(id) },
    { "store", u32() },
    { "generation", u32() },
    { "operation", u8({ values = grant_operations }) },
    { "flags", u8({ base = base.HEX, flags = { { 1, "NOTIFY_METASERVER" } } }) },
    { "shard", u16() },
    { "offset", u32(length_bytes) },
    { "block", u64({ note = block_note }) },
    { "length", u32(length_bytes) },
    { "valid", u32(length_bytes) },
    { "host_address", u64(id) },
    { "host_key", u32(id) },
    { "crc32c", u32(id) },
    { "head_block", u64({ note = block_note }) },
    { "tail_block", u64({ note = block_note }) },
    { "head_valid", u32(length_bytes) },
    { "tail_valid", u32(length_bytes) },
    { "trailer", Trailer },
    { "reserved", reserved(8) },
}, {
    summary = function(body)
        return string.format("%s %s, %d bytes", text_of(body(8, 8)),
            grant_operations[number_at(body, 40, 1)] or "?", number_at(body, 56, 4))
    end,
})
message(0x69, "Notice", {
    { "term", u64() },
    { "number", u64() },
    { "status", status },
    { "length", u32(length_bytes) },
    { "crc32c", u32(id) },
    { "reserved", reserved(4) },
}, {
    summary = function(body) return text_of(body(8, 8)) end,
})
message(0x6a, "Retired", {
    { "term", u64() },
    { "cumulative", u64() },
    { "ranges", u16() },
    { "reserved", reserved(6) },
}, {
    summary = function(body) return "up to " .. text_of(body(8, 8)) end,
    tail = function(tail, body) tail:show_parts(RetiredRange, number_at(body, 16, 2)) end,
})
message(0x6b, "Revoke", {
    { "term", u64() },
    { "number", u64() },
}, {
    summary = function(body) return text_of(body(8, 8)) end,
})
message(0x6c, "TargetStats", { { "tag", u64() } })
tail_field("TargetStatsReply", "name", ProtoField.string)
tail_field("TargetStatsReply", "fabric", ProtoField.string)
tail_field("TargetStatsReply", "peer", ProtoField.string)
message(0x6d, "TargetStatsReply", {
    { "tag", u64() },
    { "count", u16() },
    { "connections", u16() },
    { "more", u16({ values = yes_no }) },
    { "reserved", reserved(2) },
}, {
    tail = function(tail, body)
        tail:show_named_parts(CounterEntry, number_at(body, 8, 2), 8)
        tail:show_connections(number_at(body, 10, 2))
    end,
})

-- Data session

tail_field("DataHello", "ticket", ProtoField.bytes)
message(0x80, "DataHello", {
    { "session", u64(id) },
    { "epoch", u64(id) },
    { "ticket_bytes", u16(length_bytes) },
    { "reserved", reserved(6) },
}, {
    tail = function(tail, body) tail:show_bytes("ticket", number_at(body, 16, 2)) end,
})
message(0x81, "DataWelcome", {
    { "version", u16() },
    { "reserved", reserved(6) },
    { "features", features() },
})
message(0x82, "Arrival", {
    { "status", status },
    { "length", u32(length_bytes) },
    { "crc32c", u32(id) },
    { "reserved", reserved(4) },
    { "trailer", Trailer },
}, {
    summary = function(body)
        return string.format("part %d of %d, %d bytes", number_at(body, 32, 2) + 1,
            number_at(body, 34, 2), number_at(body, 4, 4))
    end,
})

local kind_names = {}
for kind, definition in pairs(messages) do kind_names[kind] = definition.name end
local FrameHeader = struct("FrameHeader", {
    { "length", u16(length_bytes) },
    { "kind", u16({ base = base.HEX, values = kind_names }) },
    { "reserved", reserved(4) },
})

-- The stream --------------------------------------------------------------------------------------------

local greeting_kinds = { "Hello", "Welcome", "Refused" }
local refusals = { [0] = "none", "Full: no room for another connection",
    "NotTrusted: the peer is on no list of trusted hosts", "Protocol: nothing in common" }
local Greeting = struct("Greeting", {
    { "magic", u32({ base = base.HEX }) },
    { "kind", u8({ values = greeting_kinds }) },
    { "refusal", u8({ values = refusals }) },
    { "version_min", u16() },
    { "version_max", u16() },
    { "small_credits", u16() },
    { "large_credits", u16() },
    { "transfers_max", u16() },
    { "features", u32({ base = base.HEX, flags = { { 1, "PAYLOAD_CHECKSUMS" } } }) },
    { "authentication", u16({ values = authentications }) },
    { "credentials_bytes", u16(length_bytes) },
})
local greeting_seen = field("gannet.greeting.seen", ProtoField.ipv6, "seen")
local greeting_credentials = field("gannet.greeting.credentials", ProtoField.bytes, "credentials")

local Frame = struct("Frame", {
    { "checksum", u32(id) },
    { "control_bytes", u32(length_bytes) },
    { "payload_bytes", u32(length_bytes) },
    { "sequence", u32() },
    { "writes_placed", u32() },
    { "small_returned", u16() },
    { "large_returned", u16() },
    { "reserved", reserved(8) },
})

local entry_kinds = { "Message", "Write", "Read", "ReadAnswer", "Refused", "Goodbye" }
local MESSAGE, WRITE, READ, READ_ANSWER = 1, 2, 3, 4
local entry_kind = u8({ values = entry_kinds })
local MessageEntry = struct("Entry", {
    { "kind", entry_kind },
    { "reserved_byte", reserved(1) },
    { "message_bytes", u16(length_bytes) },
    { "reserved", reserved(4) },
})
local TransferEntry = struct("Entry", {
    { "kind", entry_kind },
    { "reserved3", reserved(3) },
    { "checksum", u32(id) },
    { "key", u32(id) },
    { "length", u32(length_bytes) },
    { "address", u64(id) },
})
local AnswerEntry = struct("Entry", {
    { "kind", entry_kind },
    { "reserved3", reserved(3) },
    { "checksum", u32(id) },
    { "length", u32(length_bytes) },
    { "reserved", reserved(4) },
})
local RefusedEntry = struct("Entry", {
    { "kind", entry_kind },
    { "reserved7", reserved(7) },
    { "transfer", u32() },
    { "reserved", reserved(4) },
})
local GoodbyeEntry = struct("Entry", {
    { "kind", entry_kind },
    { "reserved15", reserved(15) },
})
local entries = { MessageEntry, TransferEntry, TransferEntry, AnswerEntry, RefusedEntry, GoodbyeEntry }

local checksum_good = field("gannet.checksum_good", ProtoField.bool, "checksum good")
local unknown_tail = field("gannet.unknown_tail", ProtoField.bytes, "unknown tail")
local unknown_body = field("gannet.unknown_body", ProtoField.bytes, "unknown body")
local payload_field = field("gannet.payload", ProtoField.bytes, "payload")
local payload_key = field("gannet.payload.key", ProtoField.uint32, "key", base.HEX)
local payload_address = field("gannet.payload.address", ProtoField.uint64, "address", base.HEX)
local payload_length = field("gannet.payload.length", ProtoField.uint32, "length", base.DEC)
local message_name = field("gannet.message", ProtoField.string, "message")
local greeting_checksum = field("gannet.greeting.checksum", ProtoField.uint32, "checksum", base.HEX)
local stray = field("gannet.stray", ProtoField.bytes, "bytes outside of any frame")

gannet.fields = all_fields

-- Both directions of a connection have states of their own, by the sender's and the receiver's end:
-- the number of the next frame, the reads that the sender asked for and that have no answer yet,
-- whether frames are known to begin where the last one ended, and whether one has begun that is not
-- all there yet.
local directions
-- What was found out when a frame was first seen, by packet and number of the frame.
local findings
-- Where there was no frame when a packet was first seen, by packet, place and length.
local strays

function gannet.init()
    directions = {}
    findings = {}
    strays = {}
end

-- `since` is the packet in which it began, `before` an earlier connection between the same ports.
local function new_direction(since, before)
    return {
        since = since, before = before, reads = {}, first_read = 1, is_aligned = false,
        is_waiting = false,
    }
end

local function direction_name(pinfo, is_reversed)
    local from = tostring(pinfo.src) .. " " .. pinfo.src_port
    local to = tostring(pinfo.dst) .. " " .. pinfo.dst_port
    return is_reversed and to .. " " .. from or from .. " " .. to
end

local function direction_of(pinfo, is_reversed)
    local name = direction_name(pinfo, is_reversed)
    if not directions[name] then directions[name] = new_direction(0, nil) end
    return directions[name]
end

local function forget(pinfo)
    for _, is_reversed in ipairs({ false, true }) do
        local name = direction_name(pinfo, is_reversed)
        directions[name] = new_direction(pinfo.number, directions[name])
    end
end

local function is_greeting(tvb, at) return tvb(at, 4):string() == "GNTC" end

-- How long the greeting or frame at `at` is: nothing and a reason if that is impossible, false if more
-- bytes are needed to tell.
local function unit_bytes(tvb, at)
    local left = tvb:len() - at
    if left < 4 then return false end
    if is_greeting(tvb, at) then
        if left < GREETING_BYTES then return false end
        local credentials = tvb(at + 22, 2):le_uint()
        if credentials > CREDENTIAL_BYTES_MAX then
            return nil, "Malformed: the credentials of a greeting are longer than any"
        end
        return GREETING_BYTES + credentials
    end
    if left < HEADER_BYTES then return false end
    local control, payload = tvb(at + 4, 4):le_uint(), tvb(at + 8, 4):le_uint()
    if control > CONTROL_BYTES_MAX or control % 8 ~= 0 then
        return nil, "Malformed: the control part of a frame has an impossible length"
    end
    if payload > PAYLOAD_BYTES_MAX then
        return nil, "Malformed: the payload of a frame is longer than any"
    end
    return HEADER_BYTES + control + payload
end

-- Adds to the packet list's text, up to a sensible length.
local function tell(context, text)
    context.told = context.told + 1
    if context.told <= 8 then
        table.insert(context.texts, text)
    elseif context.told == 9 then
        table.insert(context.texts, "...")
    end
end

-- Shows whether `expected` is the checksum of `range`.
local function verify(item, range, expected, what)
    local computed = crc32c(range)
    local is_good = computed == expected
    item:append_text(is_good and " (correct)" or string.format(" (wrong: 0x%08x)", computed))
    local result = item:add(checksum_good, is_good)
    if result.set_generated then result:set_generated() end
    if not is_good then
        item:add_proto_expert_info(checksum_wrong, "Wrong checksum of " .. what)
    end
    return is_good
end

local function show_greeting(range, tree, pinfo, context)
    local kind = greeting_kinds[range(4, 1):uint()]
    local branch = tree:add(gannet, range, "Greeting: " .. (kind or "unknown kind"))
    show(Greeting, range(0, Greeting.bytes), branch, context)
    local seen = branch:add(greeting_seen, range(24, 16))
    seen:append_text(" (the receiver's address as the sender sees it)")
    local checksum = branch:add_le(greeting_checksum, range(60, 4))
    verify(checksum, range(0, 60), range(60, 4):le_uint(), "a greeting")
    if range:len() > GREETING_BYTES then
        branch:add(greeting_credentials, range(GREETING_BYTES))
    end
    if not pinfo.visited then
        if kind == "Hello" then forget(pinfo) end
        direction_of(pinfo, false).is_aligned = true
    end
    if not kind then
        branch:add_proto_expert_info(malformed, "Malformed: a greeting of an unknown kind")
    end
    tell(context, "Greeting " .. (kind or "of unknown kind"))
end

-- One frame of a packet: a message with its header.
local function show_message(range, tree, context)
    local kind = range(2, 2):le_uint()
    local definition = messages[kind]
    local name = definition and definition.name or string.format("Unknown message 0x%02x", kind)
    local branch = tree:add(gannet, range, name)
    branch:add(message_name, range(2, 2), name)
    local header = branch:add(gannet, range(0, FrameHeader.bytes), "header: FrameHeader")
    show(FrameHeader, range(0, FrameHeader.bytes), header, context)
    local body_bytes = range:len() - FrameHeader.bytes
    if not definition then
        branch:add_proto_expert_info(unknown, "A message that this dissector does not know")
        if body_bytes > 0 then branch:add(unknown_body, range(FrameHeader.bytes)) end
        tell(context, name)
        return
    end
    if body_bytes < definition.bytes then
        branch:add_proto_expert_info(malformed, string.format(
            "Malformed: %s has %d bytes, and %d are there", name, definition.bytes, body_bytes))
        tell(context, name .. " (malformed)")
        return
    end
    local body = range(FrameHeader.bytes, definition.bytes)
    context.status = nil
    show(definition, body, branch, context)
    local tail = Tail.new(range, FrameHeader.bytes + definition.bytes, branch, context)
    tail.prefix = snake(name)
    if definition.tail then definition.tail(tail, body) end
    if tail:left() > 0 then branch:add(unknown_tail, range(tail.at)) end
    local summary = definition.summary and definition.summary(body)
    local text = summary and name .. " " .. summary or name
    if context.status then text = text .. " [" .. context.status .. "]" end
    if summary then branch:append_text(": " .. summary) end
    tell(context, text)
end

-- A packet of the protocol: messages, one behind the other.
local function show_packet(range, tree, context)
    local at = 0
    while at < range:len() do
        local left = range:len() - at
        local length = left >= FrameHeader.bytes and range(at, 2):le_uint() or 0
        if length < FrameHeader.bytes or length > left then
            local rest = tree:add(gannet, range(at), "Malformed message")
            rest:add_proto_expert_info(malformed, string.format(
                "Malformed: a message says that it is %d bytes long, and %d are there", length, left))
            tell(context, "malformed message")
            return
        end
        show_message(range(at, length), tree, context)
        at = at + length
    end
end

-- The bytes that a write or the answer to a read moved.
local function show_payload(range, tree, place, checksum, entry, context)
    local payload = tree:add(payload_field, range)
    if place then
        payload:append_text(string.format(": %d bytes for key 0x%08x, address 0x%s", range:len(),
            place.key, place.address:tohex(16)))
        local key = payload:add(payload_key, range, place.key)
        local address = payload:add(payload_address, range, place.address)
        local length = payload:add(payload_length, range, range:len())
        for _, item in ipairs({ key, address, length }) do item:set_generated() end
    else
        payload:append_text(string.format(": %d bytes; what asked for them was not captured", range:len()))
    end
    -- Where no checksums are in force the field is 0.
    if checksum ~= 0 and gannet.prefs.checksums then
        verify(entry, range, checksum, "a payload")
    end
end

-- Walks through a control part. `finding` has, from the first time, the places of answers to reads.
local function show_control(frame, tree, pinfo, finding, context)
    local control_bytes = frame(4, 4):le_uint()
    local at, payload_at, index = HEADER_BYTES, HEADER_BYTES + control_bytes, 0
    local control_end = payload_at
    local own = direction_of(pinfo, false)
    local peer = direction_of(pinfo, true)
    local function refuse(text)
        local item = tree:add(gannet, frame(at, control_end - at), "Malformed entry")
        item:add_proto_expert_info(malformed, "Malformed: " .. text)
        tell(context, "malformed frame")
    end
    while at < control_end do
        local left = control_end - at
        local kind = frame(at, 1):uint()
        local definition = entries[kind]
        if not definition then
            return refuse(string.format("an entry of unknown kind %d", kind))
        end
        local length = definition.bytes
        if left >= MESSAGE_HEADER_BYTES and kind == MESSAGE then
            local message_bytes = frame(at + 2, 2):le_uint()
            if message_bytes > MESSAGE_BYTES_MAX then
                return refuse("a message is longer than any")
            end
            length = math.ceil((MESSAGE_HEADER_BYTES + message_bytes) / 8) * 8
        end
        if length > left then return refuse("an entry is cut off") end
        local branch = tree:add(gannet, frame(at, length), "Entry: " .. entry_kinds[kind])
        show(definition, frame(at, definition.bytes), branch, context)
        local moved = 0
        if kind == MESSAGE then
            local message_bytes = frame(at + 2, 2):le_uint()
            branch:append_text(string.format(", %d bytes", message_bytes))
            if message_bytes > 0 then
                show_packet(frame(at + MESSAGE_HEADER_BYTES, message_bytes), branch, context)
            end
        elseif kind == WRITE or kind == READ then
            local place = { key = frame(at + 8, 4):le_uint(), address = frame(at + 16, 8):le_uint64() }
            local len_bytes = frame(at + 12, 4):le_uint()
            branch:append_text(string.format(", %d bytes, key 0x%08x, address 0x%s", len_bytes,
                place.key, place.address:tohex(16)))
            if len_bytes > TRANSFER_BYTES_MAX then return refuse("a transfer is longer than any") end
            if kind == READ then
                if not pinfo.visited then table.insert(own.reads, place) end
            else
                moved = len_bytes
                finding[index] = place
            end
            tell(context, string.format("%s of %d bytes", kind == READ and "read" or "write", len_bytes))
        elseif kind == READ_ANSWER then
            moved = frame(at + 8, 4):le_uint()
            branch:append_text(string.format(", %d bytes", moved))
            if moved > TRANSFER_BYTES_MAX then return refuse("a transfer is longer than any") end
            if not pinfo.visited then
                finding[index] = peer.reads[peer.first_read]
                if finding[index] then
                    peer.reads[peer.first_read] = nil
                    peer.first_read = peer.first_read + 1
                end
            end
            tell(context, string.format("answer of %d bytes", moved))
        else
            tell(context, entry_kinds[kind]:lower())
        end
        if moved > 0 then
            if payload_at + moved > frame:len() then
                return refuse("the payload part is shorter than what its control part tells")
            end
            local checksum = frame(at + 4, 4):le_uint()
            show_payload(frame(payload_at, moved), branch, finding[index], checksum, branch, context)
            payload_at = payload_at + moved
        end
        at, index = at + length, index + 1
    end
    if payload_at < frame:len() then
        at = payload_at
        control_end = frame:len()
        refuse("the payload part is longer than what its control part tells")
    end
end

local function show_frame(range, tree, pinfo, context)
    local control_bytes, sequence = range(4, 4):le_uint(), range(12, 4):le_uint()
    local branch = tree:add(gannet, range, string.format("Frame %d, %d bytes", sequence, range:len()))
    local header = branch:add(gannet, range(0, HEADER_BYTES), "Header")
    show(Frame, range(0, HEADER_BYTES), header, context)
    local is_good = verify(header, range(4, HEADER_BYTES - 4 + control_bytes), range(0, 4):le_uint(),
        "a frame")
    local key = pinfo.number .. " " .. sequence
    local finding = findings[key]
    if not finding then
        finding = {}
        findings[key] = finding
        local direction = direction_of(pinfo, false)
        direction.is_aligned = is_good
        if is_good then
            finding.expected = direction.next_sequence
            direction.next_sequence = (sequence + 1) % 4294967296
        end
    end
    if finding.expected and finding.expected ~= sequence then
        header:add_proto_expert_info(out_of_sequence, string.format(
            "A frame is missing or repeated: %d was expected", finding.expected))
    end
    if not is_good then
        header:add_proto_expert_info(malformed, "Malformed: a frame that its checksum does not fit")
        tell(context, "frame with a wrong checksum")
    end
    if control_bytes == 0 and is_good then tell(context, "credits") end
    show_control(range, branch, pinfo, finding, context)
end

-- For bytes that are no frame: whether there should have been one, since the last one ended there.
local function was_aligned(tvb, at, pinfo)
    local place = pinfo.number .. " " .. at .. " " .. tvb:len()
    local direction = direction_of(pinfo, false)
    if not pinfo.visited then
        strays[place] = not direction.is_aligned
        direction.is_aligned = false
    end
    return not strays[place]
end

-- Whether what is at `at` is to be taken for a frame: always where the last one ended, else if its
-- checksum fits. False if more bytes are needed to tell, and then how many.
local function is_frame(tvb, at, pinfo)
    local place = pinfo.number .. " " .. at .. " " .. tvb:len()
    if pinfo.visited then return not strays[place] end
    if direction_of(pinfo, false).is_aligned then return true end
    local covered = HEADER_BYTES + tvb(at + 4, 4):le_uint()
    local missing = at + covered - tvb:len()
    if missing > 0 then return false, missing end
    if crc32c(tvb(at + 4, covered - 4)) == tvb(at, 4):le_uint() then return true end
    strays[place] = true
    return false
end

-- Bytes that are no frame, to the end of what there is.
local function show_stray(range, tree, info, text, context)
    local item = tree:add(stray, range)
    item:add_proto_expert_info(info, text)
    tell(context, text)
end

local function dissect(tvb, pinfo, tree)
    pinfo.cols.protocol = "GANNET"
    local context = { texts = {}, told = 0, zeros = zeros_of }
    local top = tree:add(gannet, tvb())
    local at = 0
    if not pinfo.visited then direction_of(pinfo, false).is_waiting = false end
    while at < tvb:len() do
        local length, reason = unit_bytes(tvb, at)
        if length == nil then
            if was_aligned(tvb, at, pinfo) then
                show_stray(tvb(at), top, malformed, reason, context)
            else
                show_stray(tvb(at), top, lost, "Not the beginning of a frame", context)
            end
            break
        end
        local missing = length and at + length - tvb:len()
        if length and not is_greeting(tvb, at) then
            local is_one, more = is_frame(tvb, at, pinfo)
            if not is_one and not more then
                show_stray(tvb(at), top, lost, "Not the beginning of a frame", context)
                break
            end
            missing = more or missing
        end
        if not length or missing > 0 then
            if pinfo.can_desegment > 0 and tvb:len() == tvb:reported_len() then
                if not pinfo.visited then direction_of(pinfo, false).is_waiting = true end
                pinfo.desegment_offset = at
                pinfo.desegment_len = missing or DESEGMENT_ONE_MORE_SEGMENT
                break
            end
            show_stray(tvb(at), top, incomplete, "Not all of a frame is there", context)
            break
        end
        if is_greeting(tvb, at) then
            show_greeting(tvb(at, length), top, pinfo, context)
        else
            show_frame(tvb(at, length), top, pinfo, context)
        end
        at = at + length
    end
    if #context.texts > 0 then
        pinfo.cols.info = table.concat(context.texts, ", ")
        top:append_text(": " .. table.concat(context.texts, ", "))
    end
    return tvb:len()
end
gannet.dissector = dissect

-- A stream is Gannet's if it begins as one. The rest of it then is, too.
local function is_gannet(tvb, pinfo, tree)
    if tvb:len() < 4 or not is_greeting(tvb, 0) then return false end
    pinfo.conversation = gannet
    -- Not by gannet.dissector, which counts as a protocol inside of TCP's payload, and so as one for
    -- which TCP puts no segments together.
    dissect(tvb, pinfo, tree)
    return true
end

gannet:register_heuristic("tcp", is_gannet)

-- The end of a stream is most often a segment without payload, which no dissector of payload sees.
local ending = Proto("gannet_end", "Gannet, end of stream")
local tcp_fin, tcp_reset = Field.new("tcp.flags.fin"), Field.new("tcp.flags.reset")

local function is_set(extract)
    local flag = extract()
    return flag ~= nil and (flag.value == true or flag.value == 1)
end

-- Whether something is missing of a direction's last frame. Nothing follows the end of a stream, so
-- what is known when all packets were seen was true at its end.
local function is_waiting(pinfo, is_reversed)
    local direction = directions[direction_name(pinfo, is_reversed)]
    while direction and direction.since > pinfo.number do direction = direction.before end
    return direction ~= nil and direction.is_waiting
end

function ending.dissector(tvb, pinfo, tree)
    local is_reset = is_set(tcp_reset)
    if not is_reset and not is_set(tcp_fin) then return end
    if is_waiting(pinfo, false) or (is_reset and is_waiting(pinfo, true)) then
        local item = tree:add(gannet, tvb(0, 0), "Gannet: the stream ends inside of a frame")
        item:add_proto_expert_info(incomplete, "Not all of a frame is there: the stream ends")
    end
end

register_postdissector(ending)

local tcp_ports = DissectorTable.get("tcp.port")
local registered
local function register()
    if registered then tcp_ports:remove(registered, gannet) end
    registered = gannet.prefs.ports
    if registered and registered ~= "" then tcp_ports:add(registered, gannet) end
end

gannet.prefs_changed = register
register()
