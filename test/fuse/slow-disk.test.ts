/** Reads that wait for the disk are taken together: their answers must be their own, and nothing may wait for ever. */
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { openSecond } from '../../src/fuse/kernel/second-descriptor';
import { startReading } from '../../src/system/start-reading';
import { eventsOf, type Server, skip, startServer, temporaryFolder, whyNot } from './harness';
import { DATA_BYTES, patternByte } from './memory-filesystem';

/** Calls at a time: as many as libuv has threads. */
const CALLERS = 4;
const ROUNDS = 12;
const BYTES = 4096;

async function readAndCompare(file: fs.promises.FileHandle, offset: number): Promise<string | undefined> {
  const { buffer, bytesRead } = await file.read(Buffer.alloc(BYTES), 0, BYTES, offset);
  const wrong = buffer.findIndex((byte, index) => byte !== patternByte(offset + index));
  return bytesRead === BYTES && wrong < 0 ? undefined : `${offset}: ${bytesRead} bytes, wrong at ${wrong}`;
}

/** Requests that the kernel has not got an answer for. Source: the kernel's Documentation/filesystems/fuse.rst, the control filesystem. */
function waitingRequests(t: ExecutionContext, mountpoint: string): () => number {
  const file = path.join(connectionOf(t, mountpoint), 'waiting');
  return () => Number(fs.readFileSync(file, 'utf8'));
}

/** Stops the server until SIGCONT: none of its threads takes a request any more. */
async function halt(server: Server): Promise<void> {
  server.process.kill('SIGSTOP');
  const tasks = `/proc/${server.process.pid}/task`;
  const isHalted = (tid: string) => /\) T /.test(fs.readFileSync(path.join(tasks, tid, 'stat'), 'latin1'));
  while (!fs.readdirSync(tasks).every(isHalted)) await new Promise(setImmediate);
}

/** The mount's folder in the control filesystem. */
function connectionOf(t: ExecutionContext, mountpoint: string): string {
  const control = temporaryFolder(t);
  execFileSync('mount', ['-t', 'fusectl', 'none', control]);
  t.teardown(() => void execFileSync('umount', ['-l', control]));
  // Linux's st_dev of a file system without a device is its minor number.
  return path.join(control, String(fs.statSync(mountpoint).dev));
}

for (const threads of [1, 2]) {
  test.serial(
    `${threads} worker(s): reads taken together get their own answers, and so do writes and flushes between them`,
    async (t) => {
      const why = await whyNot('kernel');
      if (why !== undefined) return skip(t, why);
      const server = await startServer(t, { session: 'kernel', threads, onDisk: true });
      // The same bytes as `disk`, but reads take long.
      const slow = await fs.promises.open(path.join(server.mountpoint, 'slow'));
      const disk = await fs.promises.open(path.join(server.mountpoint, 'disk'), 'r+');
      let done = 0;
      const caller = async (number: number): Promise<void> => {
        for (let round = 0; round < ROUNDS; round++) {
          const offset = ((round * 7 + number * 31) * BYTES) % (DATA_BYTES / 2);
          t.is(await readAndCompare(slow, offset), undefined);
          if (round % 3 === number % 3)
            await disk.write(Buffer.alloc(BYTES, number), 0, BYTES, DATA_BYTES + number * BYTES);
          if (round % 4 === number) await disk.sync();
          done++;
        }
      };
      await Promise.all(Array.from({ length: CALLERS }, (_, number) => caller(number)));
      const written = await disk.read(Buffer.alloc(CALLERS * BYTES), 0, CALLERS * BYTES, DATA_BYTES);
      t.true(written.buffer.every((byte, index) => byte === Math.floor(index / BYTES)));
      await slow.close();
      await disk.close();
      const events = await eventsOf(server);
      t.is(done, CALLERS * ROUNDS);
      t.true(events.fsyncs >= CALLERS * 2, `${events.fsyncs} flushes`);
      t.true(
        events.readsAhead > (threads === 1 ? ROUNDS : 0),
        `${events.readsAhead} of ${events.reads} reads were taken beside another`,
      );
      await server.stop();
    },
  );
}

test.serial('what comes along with reads is served whole, again and again', async (t) => {
  const why = await whyNot('kernel');
  if (why !== undefined) return skip(t, why);
  const server = await startServer(t, { session: 'kernel', threads: 1, onDisk: true });
  const slow = await fs.promises.open(path.join(server.mountpoint, 'slow'));
  const disk = await fs.promises.open(path.join(server.mountpoint, 'disk'), 'r+');
  const waiting = waitingRequests(t, server.mountpoint);
  const length = 64 * 1024;
  // More rounds than one worker can put aside.
  for (let round = 1; round <= 20; round++) {
    const bytes = Buffer.alloc(length, `${round}: what a write brings lies behind what is put aside`);
    // The only worker finds all three requests at once.
    await halt(server);
    const reads = [readAndCompare(slow, 0), readAndCompare(slow, 3 * BYTES)];
    while (waiting() < 2) await new Promise(setImmediate);
    const write = disk.write(bytes, 0, length, DATA_BYTES);
    while (waiting() < 3) await new Promise(setImmediate);
    server.process.kill('SIGCONT');
    t.deepEqual(await Promise.all(reads), [undefined, undefined]);
    t.is((await write).bytesWritten, length);
    const { buffer } = await disk.read(Buffer.alloc(length), 0, length, DATA_BYTES);
    t.deepEqual(buffer, bytes);
  }
  t.is((await eventsOf(server)).readsAhead, 20);
  await slow.close();
  await disk.close();
  await server.stop();
});

test.serial('a mount that goes while reads are in hand ends, and so do they', async (t) => {
  const why = await whyNot('kernel');
  if (why !== undefined) return skip(t, why);
  const server = await startServer(t, { session: 'kernel', threads: 1, onDisk: true });
  const slow = await fs.promises.open(path.join(server.mountpoint, 'slow'));
  const control = connectionOf(t, server.mountpoint);
  const waiting = () => Number(fs.readFileSync(path.join(control, 'waiting'), 'utf8'));
  let reads: Promise<string | undefined>[];
  do {
    // The only worker finds all of them at once, and is stopped again with those in its hands that it has not answered.
    await halt(server);
    reads = Array.from({ length: CALLERS }, (_, number) => readAndCompare(slow, number * BYTES).catch(() => 'failed'));
    while (waiting() < CALLERS) await new Promise(setImmediate);
    server.process.kill('SIGCONT');
    while (waiting() === CALLERS) await new Promise(setImmediate);
    await halt(server);
    // On a busy machine it may have answered all by now.
  } while (waiting() === 0);
  fs.writeFileSync(path.join(control, 'abort'), '1');
  server.process.kill('SIGCONT');
  const results = await Promise.all(reads);
  t.true(results.includes('failed'), String(results));
  await slow.close().catch(() => {});
  t.is(await server.ended, 0);
});

test.serial(
  'startReading() has a file read that nobody has read yet, also where RWF_NOWAIT is not known',
  async (t) => {
    const why = await whyNot('kernel');
    if (why !== undefined) return skip(t, why);
    const server = await startServer(t, { session: 'kernel', kernelCache: true });
    const disk = await fs.promises.open(path.join(server.mountpoint, 'disk'));
    // A file system of FUSE does not know it.
    startReading(disk.fd, 64 * 1024, BYTES);
    while ((await eventsOf(server)).reads === 0);
    await disk.close();
    await server.stop();
    t.pass();
  },
);

test('openSecond() answers undefined where there is no mount to join', (t) => {
  const fd = fs.openSync('/dev/null', 'r');
  t.is(openSecond(fd), undefined);
  fs.closeSync(fd);
});
