-- Wireshark: what two Pollux machines say to each other on the log network.
--
--   wireshark -X lua_script:docs/pollux.lua log.pcap
--   tshark -X lua_script:docs/pollux.lua -r log.pcap -Y pollux
--
-- The log stream is TCP port 7001, heartbeats are UDP port 7002. A pair with a key agrees on fresh keys for each connection
-- (Noise NNpsk0), so that nobody reads a capture later, not even with the pair's key: greetings, handshake and the sizes of
-- messages are shown. The messages of a pair without a key (`--key none`) are decoded whole. Formats: ft/src/handshake.rs,
-- seal.rs, message.rs, batch.rs, entry.rs, heartbeat.rs.

local pollux = Proto("pollux", "Pollux log stream")
local beat = Proto("pollux_heartbeat", "Pollux heartbeat")

local LOG_PORT, HEARTBEAT_PORT = 7001, 7002
-- A greeting names two keys since version 14 of the protocol.
local GREETING, GREETING_13, NOISE, MAX_PAYLOAD = 38, 30, 48, 96 * 1024
local HEAD, CHECK, TAG = 5, 4, 16

local MESSAGES = { "Hello", "Refuse", "StateBegin", "Memory", "Machine", "StateEnd", "Joined", "Entries", "Ack", "Bye",
  "Zero", "Arbiter", "BidFor" }
local KINDS = { [0] = "clock", "packet", "console", "horizon", "output", "digest", "control", "disk" }
local CONTROLS = { [0] = "power-off", "reset", "switch-over" }
local BYES = { [0] = "leaving", "diverged", "gave up", "took over" }
local ROLES = { [0] = "alone", "transferring", "protected", "detaching", "joining", "loading", "backup", "draining", "halted",
  "starting", "handing over" }

local f = {
  protocol = ProtoField.uint16("pollux.protocol", "Protocol"),
  fingerprint = ProtoField.bytes("pollux.fingerprint", "Fingerprint of the key"),
  nonce = ProtoField.bytes("pollux.nonce", "Drawn for this connection"),
  ephemeral = ProtoField.bytes("pollux.ephemeral", "Ephemeral key"),
  tag = ProtoField.bytes("pollux.tag", "Tag"),
  length = ProtoField.uint32("pollux.length", "Length of the payload"),
  sealed = ProtoField.bytes("pollux.sealed", "Encrypted type and payload"),
  type = ProtoField.uint8("pollux.type", "Type", base.DEC, MESSAGES),
  check = ProtoField.uint32("pollux.check", "Checksum", base.HEX),
  data = ProtoField.bytes("pollux.data", "Data"),
  text = ProtoField.string("pollux.text", "Text"),
  term = ProtoField.uint64("pollux.term", "Term"),
  session = ProtoField.uint64("pollux.session", "Session", base.HEX),
  next = ProtoField.uint64("pollux.next_term", "Next term"),
  gpa = ProtoField.uint64("pollux.gpa", "Guest-physical address", base.HEX),
  bytes = ProtoField.uint64("pollux.bytes", "Bytes"),
  seq = ProtoField.uint64("pollux.seq", "Entry"),
  position = ProtoField.uint64("pollux.position", "Position"),
  received = ProtoField.uint64("pollux.received", "Received up to"),
  behind = ProtoField.uint64("pollux.behind", "Received, not yet applied"),
  digest = ProtoField.bytes("pollux.digest", "Digest"),
  kind = ProtoField.uint8("pollux.kind", "Kind", base.DEC, KINDS),
  control = ProtoField.uint8("pollux.control", "Control", base.DEC, CONTROLS),
  bye = ProtoField.uint8("pollux.bye", "Why", base.DEC, BYES),
  joining = ProtoField.bool("pollux.joining", "Wants to become the backup"),
  base_ns = ProtoField.uint64("pollux.base_ns", "Guest time (ns)"),
  rate = ProtoField.uint64("pollux.rate", "Rate (32.32 ns per tick)", base.HEX),
  slice = ProtoField.uint64("pollux.slice", "Slice of memory"),
  released = ProtoField.uint64("pollux.released", "Frames have left up to entry"),
}
pollux.fields = f
local malformed = ProtoExpert.new("pollux.malformed", "Malformed", expert.group.MALFORMED, expert.severity.ERROR)
pollux.experts = { malformed }

-- By stream: true if it began with a greeting, so that its messages are encrypted; false if a message in the clear was seen.
local keyed = {}
function pollux.init() keyed = {} end

local tcp_stream = Field.new("tcp.stream")

-- A reader of a payload; it raises an error at the end of the bytes, which the caller shows.
local function reader(range)
  local self = { at = 0 }
  function self.left() return range:len() - self.at end
  function self.take(len)
    if len > self.left() then error("the payload is cut short", 0) end
    local part = range:range(self.at, len)
    self.at = self.at + len
    return part
  end
  -- LEB128 of at most 64 bits: the bytes and the value.
  function self.varint()
    local from, value = self.at, UInt64(0)
    for index = 0, 9 do
      local byte = self.take(1):uint()
      value = value:bor(UInt64(bit.band(byte, 0x7f)):lshift(7 * index))
      if byte < 0x80 then return range:range(from, self.at - from), value end
    end
    error("a number is too long", 0)
  end
  return self
end

local function put(tree, field, bytes, value) return tree:add(field, bytes, value) end

-- The entries of a batch: their kinds, for the summary.
local function entries(payload, tree)
  local r, names = reader(payload), {}
  local bytes, seq = r.varint()
  local first = seq
  put(tree, f.seq, bytes, seq)
  local position
  bytes, position = r.varint()
  put(tree, f.position, bytes, position)
  local back
  bytes, back = r.varint()
  if back ~= UInt64(0) then
    put(tree, f.released, bytes, seq - back)
    r.varint()
  end
  while r.left() > 0 do
    local from = r.at
    local kind = r.take(1)
    local name = KINDS[kind:uint()] or error("an entry of an unknown kind", 0)
    local where, distance = r.varint()
    position = position + distance
    local branch = tree:add(pollux, kind, string.format("Entry %s: %s at %s", tostring(seq), name, tostring(position)))
    put(branch, f.kind, kind, kind:uint())
    put(branch, f.seq, kind, seq):set_generated()
    put(branch, f.position, where, position)
    if name == "clock" then
      put(branch, f.base_ns, r.varint())
      put(branch, f.rate, r.varint())
    elseif name == "packet" or name == "console" or name == "disk" then
      local _, len = r.varint()
      local data = r.take(len:tonumber())
      branch:add(f.data, data)
    elseif name == "digest" then
      branch:add(f.digest, r.take(8))
      put(branch, f.slice, r.varint())
      branch:add(f.digest, r.take(8))
    elseif name == "control" then
      branch:add(f.control, r.take(1))
    end
    branch:set_len(r.at - from)
    names[#names + 1] = name
    seq = seq + 1
  end
  local kinds = table.concat(names, ", ", 1, math.min(#names, 6)) .. (#names > 6 and ", …" or "")
  return string.format("%s to %s (%s)", tostring(first), tostring(seq - 1), kinds)
end

-- What is in a message, by its type; each returns what the summary tells of it.
local content = {}
function content.Hello(payload, tree)
  local r = reader(payload)
  tree:add_le(f.protocol, r.take(2))
  local joining = r.take(1)
  tree:add(f.joining, joining)
  put(tree, f.term, r.varint())
  return joining:uint() == 1 and "wants to join" or "is primary"
end
function content.Refuse(payload, tree)
  local r = reader(payload)
  r.take(1)
  local _, len = r.varint()
  local text = r.take(len:tonumber())
  tree:add(f.text, text)
  return text:string()
end
function content.StateBegin(payload, tree)
  local r = reader(payload)
  put(tree, f.session, r.varint())
  local bytes, term = r.varint()
  put(tree, f.term, bytes, term)
  put(tree, f.next, r.varint())
  return "term " .. tostring(term)
end
function content.Memory(payload, tree)
  local r = reader(payload)
  local bytes, gpa = r.varint()
  put(tree, f.gpa, bytes, gpa)
  local len = r.left()
  tree:add(f.data, r.take(len))
  return string.format("%d bytes at 0x%s", len, gpa:tohex())
end
function content.Zero(payload, tree)
  local r = reader(payload)
  put(tree, f.gpa, r.varint())
  put(tree, f.bytes, r.varint())
  return ""
end
function content.Machine(payload, tree)
  tree:add(f.data, payload)
  return payload:len() .. " bytes"
end
function content.StateEnd(payload, tree)
  local r = reader(payload)
  put(tree, f.position, r.varint())
  put(tree, f.seq, r.varint())
  tree:add(f.digest, r.take(8))
  return ""
end
function content.Joined(payload, tree)
  put(tree, f.session, reader(payload).varint())
  return ""
end
content.Entries = entries
function content.Ack(payload, tree)
  local r = reader(payload)
  local bytes, received = r.varint()
  put(tree, f.received, bytes, received)
  local behind
  bytes, behind = r.varint()
  put(tree, f.behind, bytes, behind)
  put(tree, f.position, r.varint())
  return string.format("%s, %s of them to be applied", tostring(received), tostring(behind))
end
function content.Bye(payload, tree)
  local r = reader(payload)
  local why = r.take(1)
  tree:add(f.bye, why)
  local words = BYES[why:uint()] or "?"
  if words == "took over" then
    put(tree, f.term, r.varint())
  elseif r.left() > 0 then
    local _, len = r.varint()
    tree:add(f.text, r.take(len:tonumber()))
  end
  return words
end
function content.Arbiter(payload, tree)
  tree:add(f.data, payload)
  return ""
end
function content.BidFor(payload, tree)
  local bytes, term = reader(payload).varint()
  put(tree, f.term, bytes, term)
  return "term " .. tostring(term)
end

-- What stands at an offset: a greeting, a message of the handshake, or a sealed message; a greeting and an ephemeral key, but
-- for a few in a hundred thousand, are larger than any length.
local function look(tvb, offset)
  local length = tvb(offset, 4):le_uint()
  if tvb(offset, 4):string() == "PLXs" then
    local old = tvb:len() >= offset + 6 and tvb(offset + 4, 2):le_uint() < 14
    return "greeting", old and GREETING_13 or GREETING
  end
  if length > MAX_PAYLOAD then return "handshake", NOISE end
  local is_keyed = keyed[tcp_stream()()]
  -- A capture that began later: an encrypted type is any byte.
  if is_keyed == nil and not MESSAGES[tvb(offset + 4, 1):uint()] then is_keyed = true end
  if is_keyed then return "sealed", HEAD + length + TAG end
  return "plain", HEAD + length + CHECK
end

local function size(tvb, _, offset)
  local what, len = look(tvb, offset)
  if what == "greeting" then keyed[tcp_stream()()] = true end
  if what == "plain" and tvb(offset + 4, 1):uint() == 1 then keyed[tcp_stream()()] = keyed[tcp_stream()()] or false end
  return len
end

-- What the messages of a packet were, in words.
local summary = {}

local function message(tvb, _, root)
  local what, len = look(tvb, 0)
  local tree = root:add(pollux, tvb(0, len))
  local told
  if what == "greeting" then
    tree:add_le(f.protocol, tvb(4, 2))
    tree:add(f.fingerprint, tvb(6, 8))
    if len == GREETING then tree:add(f.fingerprint, tvb(14, 8)) end
    tree:add(f.nonce, tvb(len - 16, 16))
    told = "Greeting"
  elseif what == "handshake" then
    tree:add(f.ephemeral, tvb(0, 32))
    tree:add(f.tag, tvb(32, TAG))
    told = "Handshake"
  elseif what == "sealed" then
    local length = tvb(0, 4):le_uint()
    tree:add_le(f.length, tvb(0, 4))
    tree:add(f.sealed, tvb(4, 1 + length))
    tree:add(f.tag, tvb(5 + length, TAG))
    told = string.format("Sealed, %d bytes", length)
  else
    local length, type = tvb(0, 4):le_uint(), tvb(4, 1):uint()
    local name = MESSAGES[type]
    tree:add_le(f.length, tvb(0, 4))
    tree:add(f.type, tvb(4, 1))
    told = name or string.format("Message of unknown type %d", type)
    if name and (length > 0 or name == "Machine") then
      local fine, words = pcall(content[name], tvb(HEAD, length), tree)
      if not fine then tree:add_proto_expert_info(malformed, words) end
      told = name .. (words ~= "" and " " .. words or "")
    end
    tree:add_le(f.check, tvb(HEAD + length, CHECK))
  end
  tree:append_text(": " .. told)
  summary[#summary + 1] = "· " .. told .. " "
  return len
end

function pollux.dissector(tvb, pinfo, tree)
  summary = {}
  dissect_tcp_pdus(tvb, tree, HEAD, size, message)
  pinfo.cols.protocol = "POLLUX"
  -- A packet without the end of a message keeps what TCP says of it.
  if #summary > 0 then pinfo.cols.info = table.concat(summary) end
  return tvb:len()
end

local b = {
  node = ProtoField.uint64("pollux_heartbeat.node", "Sender", base.HEX),
  counter = ProtoField.uint64("pollux_heartbeat.counter", "Number"),
  sealed = ProtoField.bytes("pollux_heartbeat.sealed", "Encrypted"),
  role = ProtoField.uint8("pollux_heartbeat.role", "Role", base.DEC, ROLES),
  linked = ProtoField.bool("pollux_heartbeat.linked", "Stream is connected"),
  pair = ProtoField.uint64("pollux_heartbeat.pair", "Digest of the pair's name", base.HEX),
  peer = ProtoField.uint64("pollux_heartbeat.peer", "Twin", base.HEX),
  echo = ProtoField.uint64("pollux_heartbeat.echo", "Newest heard of the twin"),
  answers = ProtoField.uint64("pollux_heartbeat.answers", "Newest heard of the first named"),
  creator = ProtoField.uint64("pollux_heartbeat.creator", "Who is to create a guest", base.HEX),
  term = ProtoField.uint64("pollux_heartbeat.term", "Term"),
  session = ProtoField.uint64("pollux_heartbeat.session", "Session", base.HEX),
  seq = ProtoField.uint64("pollux_heartbeat.seq", "Newest entry"),
  position = ProtoField.uint64("pollux_heartbeat.position", "Position"),
  time = ProtoField.uint64("pollux_heartbeat.time", "Sender's clock (µs)"),
  heard = ProtoField.uint64("pollux_heartbeat.heard", "Heard of", base.HEX),
  tag = ProtoField.bytes("pollux_heartbeat.tag", "Tag"),
}
beat.fields = b

-- The numbers of a heartbeat in the order of the wire; up to version 9 of the protocol two of them were not there.
local LAYOUTS = {
  PLXb = { "pair", "peer", "echo", "term", "session", "seq", "position", "time" },
  PLXc = { "pair", "peer", "echo", "answers", "creator", "term", "session", "seq", "position", "time" },
}

function beat.dissector(tvb, pinfo, root)
  local numbers = tvb:len() > 4 and LAYOUTS[tvb(0, 4):string()]
  if not numbers then return 0 end
  local BODY = 2 + #numbers * 8 + 4 * 8
  local BEAT = 4 + 16 + BODY + 16
  if tvb:len() ~= BEAT then return 0 end
  pinfo.cols.protocol = "POLLUX"
  local tree = root:add(beat, tvb())
  tree:add_le(b.node, tvb(4, 8))
  tree:add_le(b.counter, tvb(12, 8))
  local told = "Heartbeat " .. tostring(tvb(12, 8):le_uint64())
  local tag = 20 + BODY
  -- A checksum has eight bytes, and zeros behind.
  if tvb(tag + 8, 8):uint64() == UInt64(0) then
    local role = tvb(20, 1):uint()
    tree:add(b.role, tvb(20, 1))
    tree:add(b.linked, tvb(21, 1))
    local at = 22
    local said = {}
    for _, name in ipairs(numbers) do
      tree:add_le(b[name], tvb(at, 8))
      said[name] = tostring(tvb(at, 8):le_uint64())
      at = at + 8
    end
    for _ = 1, 4 do
      tree:add_le(b.heard, tvb(at, 8))
      at = at + 8
    end
    told = string.format("%s, %s, term %s, entry %s", told, ROLES[role] or "?", said.term, said.seq)
  else
    tree:add(b.sealed, tvb(20, BODY))
    told = told .. ", sealed"
  end
  tree:add(b.tag, tvb(tag, TAG))
  tree:append_text(": " .. told)
  pinfo.cols.info = told
  return BEAT
end

DissectorTable.get("tcp.port"):add(LOG_PORT, pollux)
DissectorTable.get("udp.port"):add(HEARTBEAT_PORT, beat)
