/** A pair of connected sockets, and receiving a descriptor over one (unix(7), SCM_RIGHTS). */
import { koffi } from './koffi';
import { declare, interrupted, lastError, SystemError } from './libc';

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_CLOEXEC = 0x80000;
const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
const MSG_CMSG_CLOEXEC = 0x40000000;
const ECONNRESET = 104;

/** struct cmsghdr: cmsg_len u64 at 0, cmsg_level i32 at 8, cmsg_type i32 at 12; the data follows at 16. */
const CMSG_HEADER_BYTES = 16;
/** Room for one header and one descriptor: a peer that sends more has the rest closed by the kernel (MSG_CTRUNC). */
const CONTROL_BYTES = CMSG_HEADER_BYTES + 4;

const iovec = koffi.struct({ base: 'void *', length: 'size_t' });
const msghdr = koffi.struct('imagefs_msghdr', {
  name: 'void *',
  nameLength: 'uint32_t',
  iov: koffi.pointer(iovec),
  iovLength: 'size_t',
  control: 'void *',
  controlLength: 'size_t',
  flags: 'int',
});

interface MessageHeader {
  name: null;
  nameLength: number;
  iov: { base: Buffer; length: number }[];
  iovLength: number;
  control: Buffer;
  controlLength: number;
  flags: number;
}

const socketpair = declare<[number, number, number, Buffer]>(
  'int socketpair(int domain, int type, int protocol, void *pair)',
);
/** The message is not read back, so that it can be used again: what the call changes in the buffers is seen all the same. */
const recvmsg = declare<[number, MessageHeader, number]>(
  `int64_t recvmsg(int socket, ${koffi.introspect(msghdr).name} *message, int flags)`,
);

/** Two connected stream sockets, closed on exec. The caller closes both. */
export function socketPair(): [number, number] {
  const pair = Buffer.alloc(8);
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) throw lastError('socketpair');
  return [pair.readInt32LE(0), pair.readInt32LE(4)];
}

/**
 * Waits for one message and takes the descriptor that came with it; it is closed on exec.
 * Throws ECONNRESET when the peer closed its end, or wrote something, without sending a descriptor.
 */
export function receiveDescriptor(socket: number): number {
  const data = Buffer.alloc(1);
  const control = Buffer.alloc(CONTROL_BYTES);
  const message: MessageHeader = {
    name: null,
    nameLength: 0,
    iov: [{ base: data, length: data.length }],
    iovLength: 1,
    control,
    controlLength: CONTROL_BYTES,
    flags: 0,
  };
  while (interrupted(recvmsg(socket, message, MSG_CMSG_CLOEXEC), 'recvmsg'));
  const length = Number(control.readBigUInt64LE(0));
  const hasDescriptor =
    length >= CMSG_HEADER_BYTES + 4 && control.readInt32LE(8) === SOL_SOCKET && control.readInt32LE(12) === SCM_RIGHTS;
  if (!hasDescriptor) throw new SystemError(ECONNRESET, 'recvmsg');
  return control.readInt32LE(CMSG_HEADER_BYTES);
}
