/**
 * The loop of the kernel session, byte by byte: instead of /dev/fuse it gets one end of a socket pair, so that requests can be sent that
 * no kernel would send.
 */
import { once } from 'node:events';
import * as fs from 'node:fs';
import { constants } from 'node:os';
import * as path from 'node:path';
import { Worker } from 'node:worker_threads';
import test, { type ExecutionContext } from 'ava';
import { OPCODE } from '../../../src/fuse/kernel/protocol';
import type { KernelServeOptions } from '../../../src/fuse/session';
import { declare } from '../../../src/system/libc';
import { POLLIN, pollDescriptor } from '../../../src/system/poll';
import { createMemory, DISK_BYTES, patternByte } from '../../fuse/memory-filesystem';
import type { ServeWorkerData } from '../../fuse/serve-worker';

const { EFBIG, EINVAL, EIO, ENOSYS, EPERM, EROFS, EPROTO } = constants.errno;
const DISK = 2n;

const AF_UNIX = 1;
/** Keeps packets apart, as /dev/fuse does. */
const SOCK_SEQPACKET = 5;
const socketpair = declare<[number, number, number, Buffer]>(
  'int socketpair(int domain, int type, int protocol, void *pair)',
);

function packetPair(): [number, number] {
  const pair = Buffer.alloc(8);
  if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) < 0) throw new Error('socketpair');
  return [pair.readInt32LE(0), pair.readInt32LE(4)];
}

interface Reply {
  error: number;
  unique: bigint;
  body: Buffer;
}

interface Loop {
  /** Sends one request; nothing is read. */
  send(opcode: number, body?: Buffer, more?: { node?: bigint; unique?: bigint; length?: number }): void;
  reply(): Promise<Reply>;
  ask(opcode: number, body?: Buffer, node?: bigint): Promise<Reply>;
  raw(bytes: Buffer): void;
}

async function startLoop(t: ExecutionContext, options: Partial<KernelServeOptions> = {}): Promise<Loop> {
  const [ours, theirs] = packetPair();
  const data: ServeWorkerData = {
    memory: createMemory(),
    options: { kernelCache: false, readOnly: false, ...options },
  };
  const worker = new Worker(path.join(__dirname, '../../fuse/serve-worker.js'), {
    workerData: data,
    trackUnmanagedFds: false,
  });
  await once(worker, 'message');
  worker.postMessage(theirs);
  t.teardown(async () => {
    const gone = once(worker, 'exit');
    // The loop returns when its read returns nothing.
    fs.closeSync(ours);
    const [code] = (await gone) as [number];
    fs.closeSync(theirs);
    if (code !== 0) throw new Error(`the loop's thread ended with ${code}`);
  });
  const input = Buffer.alloc(2 * 1024 * 1024);
  const send: Loop['send'] = (opcode, body = Buffer.alloc(0), more = {}) => {
    const header = Buffer.alloc(40);
    header.writeUInt32LE(more.length ?? 40 + body.length, 0);
    header.writeUInt32LE(opcode, 4);
    header.writeBigUInt64LE(more.unique ?? 1n, 8);
    header.writeBigUInt64LE(more.node ?? DISK, 16);
    fs.writeSync(ours, Buffer.concat([header, body]));
  };
  const reply = async (): Promise<Reply> => {
    if ((await pollDescriptor(ours, POLLIN, 30_000)) === 0) throw new Error('no reply');
    const length = fs.readSync(ours, input, 0, input.length, null);
    if (input.readUInt32LE(0) !== length) throw new Error(`${length} bytes say that they are ${input.readUInt32LE(0)}`);
    return {
      error: input.readInt32LE(4),
      unique: input.readBigUInt64LE(8),
      body: Buffer.from(input.subarray(16, length)),
    };
  };
  const ask: Loop['ask'] = (opcode, body, node = DISK) => {
    send(opcode, body, { node });
    return reply();
  };
  return { send, reply, ask, raw: (bytes) => fs.writeSync(ours, bytes) };
}

function ioBody(offset: bigint, size: number, flags = 0, data = Buffer.alloc(0)): Buffer {
  const body = Buffer.alloc(40);
  body.writeBigUInt64LE(offset, 8);
  body.writeUInt32LE(size, 16);
  body.writeUInt32LE(flags, 32);
  return Buffer.concat([body, data]);
}

test.serial('READ answers header and bytes in one reply, with the unique of 64 bits', async (t) => {
  const loop = await startLoop(t);
  const unique = 0xfedcba9876543210n;
  loop.send(OPCODE.READ, ioBody(1000n, 50), { unique });
  const reply = await loop.reply();
  t.is(reply.error, 0);
  t.is(reply.unique, unique);
  t.deepEqual(
    [...reply.body],
    Array.from({ length: 50 }, (_, index) => patternByte(1000 + index)),
  );
});

test.serial('READ past every disk is empty, of more than 1 MiB it is EINVAL', async (t) => {
  const loop = await startLoop(t);
  for (const offset of [BigInt(DISK_BYTES), 2n ** 52n, 2n ** 53n, 2n ** 63n - 1n]) {
    const { error, body } = await loop.ask(OPCODE.READ, ioBody(offset, 4096));
    t.deepEqual([error, body.length], [0, 0]);
  }
  t.is((await loop.ask(OPCODE.READ, ioBody(0n, 2 ** 20 + 1))).error, -EINVAL);
});

test.serial(
  'WRITE that claims more bytes than it brings is EIO and writes nothing; offsets of 2^53 are EFBIG',
  async (t) => {
    const loop = await startLoop(t);
    t.is((await loop.ask(OPCODE.WRITE, ioBody(0n, 9, 0, Buffer.alloc(8)))).error, -EIO);
    t.is((await loop.ask(OPCODE.READ, ioBody(0n, 1))).body[0], patternByte(0));
    t.is((await loop.ask(OPCODE.WRITE, ioBody(2n ** 53n, 8, 0, Buffer.alloc(8)))).error, -EFBIG);
    const { error, body } = await loop.ask(OPCODE.WRITE, ioBody(0n, 8, 0, Buffer.alloc(8, 0xaa)));
    t.deepEqual([error, body.readUInt32LE(0), body.length], [0, 8, 8]);
    t.is((await loop.ask(OPCODE.READ, ioBody(7n, 1))).body[0], 0xaa);
  },
);

test.serial('requests that are too short get EIO, and the loop goes on', async (t) => {
  const loop = await startLoop(t);
  const known = Object.entries(OPCODE).filter(([name]) =>
    [
      'LOOKUP',
      'SETATTR',
      'OPEN',
      'READ',
      'WRITE',
      'RELEASE',
      'FSYNC',
      'READDIR',
      'FALLOCATE',
      'LSEEK',
      'INIT',
    ].includes(name),
  );
  for (const [name, opcode] of known) t.is((await loop.ask(opcode)).error, -EIO, name);
  t.is((await loop.ask(OPCODE.COPY_FILE_RANGE, Buffer.alloc(55))).error, -EIO);
  t.is((await loop.ask(OPCODE.GETATTR)).error, 0);
});

test.serial('what is no request at all is passed over; one with a wrong length gets EIO', async (t) => {
  const loop = await startLoop(t);
  loop.raw(Buffer.alloc(39, 1));
  loop.send(OPCODE.GETATTR, Buffer.alloc(16), { length: 41, unique: 5n });
  const { error, unique } = await loop.reply();
  t.deepEqual([error, unique], [-EIO, 5n]);
  loop.send(OPCODE.STATFS, undefined, { unique: 6n });
  t.is((await loop.reply()).unique, 6n);
});

test.serial('FORGET, BATCH_FORGET, INTERRUPT and NOTIFY_REPLY get no reply', async (t) => {
  const loop = await startLoop(t);
  for (const opcode of [OPCODE.FORGET, OPCODE.BATCH_FORGET, OPCODE.INTERRUPT, OPCODE.NOTIFY_REPLY]) {
    loop.send(opcode, Buffer.alloc(16), { unique: 100n });
    loop.send(OPCODE.STATFS, undefined, { unique: 200n + BigInt(opcode) });
    t.is((await loop.reply()).unique, 200n + BigInt(opcode));
  }
});

test.serial('unknown opcodes get ENOSYS, whatever their number', async (t) => {
  const loop = await startLoop(t);
  for (const opcode of [0, 7, 19, 33, 37, 49, 50, 52, 63, 64, 4096, 2 ** 32 - 1])
    t.is((await loop.ask(opcode)).error, -ENOSYS);
});

test.serial('what would change the tree gets EPERM, on a read-only mount EROFS', async (t) => {
  const writable = await startLoop(t);
  const readOnly = await startLoop(t, { readOnly: true });
  const { CREATE, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, RENAME2, SYMLINK, LINK } = OPCODE;
  for (const opcode of [CREATE, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, RENAME2, SYMLINK, LINK]) {
    t.is((await writable.ask(opcode, Buffer.alloc(64))).error, -EPERM);
    t.is((await readOnly.ask(opcode, Buffer.alloc(64))).error, -EROFS);
  }
});

test.serial('RENAME2 knows no flag but NOREPLACE', async (t) => {
  const loop = await startLoop(t);
  const flagged = (flags: number): Buffer => {
    const body = Buffer.alloc(64);
    body.writeUInt32LE(flags, 8);
    return body;
  };
  for (const [flags, errno] of [
    [0, EPERM],
    [1, EPERM],
    [2, EINVAL],
    [3, EINVAL],
    [4, EINVAL],
    [0x80000000, EINVAL],
  ]) {
    t.is((await loop.ask(OPCODE.RENAME2, flagged(flags))).error, -errno, String(flags));
  }
});

test.serial('INIT of an ancient kernel is refused, of a modern one answered with 64 bytes', async (t) => {
  const loop = await startLoop(t);
  const init = (major: number, minor: number): Buffer => {
    const body = Buffer.alloc(64);
    body.writeUInt32LE(major, 0);
    body.writeUInt32LE(minor, 4);
    return body;
  };
  t.is((await loop.ask(OPCODE.INIT, init(7, 8))).error, -EPROTO);
  const { error, body } = await loop.ask(OPCODE.INIT, init(7, 45));
  t.deepEqual([error, body.length, body.readUInt32LE(4)], [0, 64, 40]);
  t.is(
    (await loop.ask(OPCODE.INIT, init(7, 31).subarray(0, 16))).body.length,
    64,
    'the short INIT of kernels before 5.17',
  );
});

test.serial('COPY_FILE_RANGE of an absurd length copies what there is room for, and says how much', async (t) => {
  const loop = await startLoop(t);
  const body = Buffer.alloc(56);
  body.writeBigUInt64LE(100n, 8);
  body.writeBigUInt64LE(DISK, 16);
  body.writeBigUInt64LE(BigInt(DISK_BYTES) - 5000n, 32);
  body.writeBigUInt64LE(2n ** 40n, 40);
  const { error, body: reply } = await loop.ask(OPCODE.COPY_FILE_RANGE, body);
  t.deepEqual([error, reply.readUInt32LE(0)], [0, 5000]);
  const copied = (await loop.ask(OPCODE.READ, ioBody(BigInt(DISK_BYTES) - 5000n, 5000))).body;
  t.deepEqual([...copied.subarray(0, 3)], [100, 101, 102].map(patternByte));
});
