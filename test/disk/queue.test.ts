/**
 * Many programs that read at once: requests are served several at a time, and each must get its own bytes, whatever kind of cluster
 * they come from, and whatever is written, freed or cut off meanwhile.
 */
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { KIB, MIB } from '../../src/units';
import { openRing } from '../helpers/rings';
import { daemonAt, imagefs, isRoot, required, run, warmedUp, workspace } from '../mount/cli';
import { createImage, mount, noise, overlayImage, random, sameBytes } from './disk-mount';

const CALLERS = 32;
const ROUNDS = 12;
const BLOCK = 4 * KIB;
/** It finds all of a burst, and so takes some of it together for sure. */
const ONE_WORKER = ['--threads', '1'];

/**
 * Reads blocks with many threads at a time, each burst while the daemon is halted, so that all of it is there when the daemon goes on. Waits for that in
 * the connection's folder of the control filesystem. Prints which blocks are not as in the file of expected bytes.
 */
const READER = `
  const fs = require('fs');
  const [disk, expectedFile, pid, waitingFile, rounds, seed] = process.argv.slice(1);
  const expected = fs.readFileSync(expectedFile);
  const blocks = Math.floor(expected.length / ${BLOCK});
  let state = Number(seed);
  const next = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) % blocks;
  const waiting = () => Number(fs.readFileSync(waitingFile, 'utf8'));
  const isHalted = () => fs.readdirSync('/proc/' + pid + '/task').every((tid) => {
    try {
      return / T /.test(fs.readFileSync('/proc/' + pid + '/task/' + tid + '/stat', 'latin1'));
    } catch {
      return true; // Ended meanwhile.
    }
  });
  (async () => {
    const fd = fs.openSync(disk, 'r');
    let wrong = 0, reads = 0;
    for (let round = 0; round < Number(rounds); round++) {
      process.kill(Number(pid), 'SIGSTOP');
      while (!isHalted()) await new Promise(setImmediate);
      const burst = Array.from({ length: ${CALLERS} }, () => {
        const block = next();
        const bytes = Buffer.alloc(${BLOCK}, 0xee);
        return new Promise((resolve) => fs.read(fd, bytes, 0, ${BLOCK}, block * ${BLOCK}, (error, count) => {
          reads++;
          if (error || count !== ${BLOCK} || !bytes.equals(expected.subarray(block * ${BLOCK}, (block + 1) * ${BLOCK}))) {
            wrong++;
            console.log('block', block, error ? error.code : count);
          }
          resolve();
        }));
      });
      while (waiting() < ${CALLERS}) await new Promise(setImmediate);
      process.kill(Number(pid), 'SIGCONT');
      await Promise.all(burst);
    }
    console.log(reads + ' reads, ' + wrong + ' wrong');
  })();
`;

/** The number of requests that the kernel has no answer for. Source: Documentation/filesystems/fuse.rst */
function waitingFile(t: ExecutionContext, mountpoint: string): string {
  const control = workspace(t);
  execFileSync('mount', ['-t', 'fusectl', 'none', control]);
  t.teardown(() => void execFileSync('umount', ['-l', control]));
  return path.join(control, String(fs.statSync(mountpoint).dev), 'waiting');
}

/** read(2) and pread(2) of a process so far. Source: proc_pid_io(5), syscr */
function readCalls(pid: number): number {
  return Number(/^syscr: (\d+)$/m.exec(fs.readFileSync(`/proc/${pid}/io`, 'utf8'))?.[1]);
}

function readOperations(mountpoint: string): number {
  return JSON.parse(fs.readFileSync(path.join(mountpoint, 'stats.json'), 'utf8')).rd_operations;
}

interface Bursts {
  /** In the mount. */
  file?: string;
  /** They are counted as reads of the live disk. */
  counted?: boolean;
  /** Most of them lie in one piece in a file of the host. */
  located?: boolean;
}

async function readInBursts(
  t: ExecutionContext,
  mountpoint: string,
  expected: string,
  bursts: Bursts = {},
): Promise<void> {
  const { file = 'disk', counted = true, located = true } = bursts;
  const { pid } = daemonAt(t, mountpoint);
  const reads = ROUNDS * CALLERS;
  if (located) await warmedUp(t, pid);
  const before = { operations: readOperations(mountpoint), calls: readCalls(pid) };
  const args = [path.join(mountpoint, file), expected, pid, waitingFile(t, mountpoint), ROUNDS, 5].map(String);
  const env = { ...process.env, UV_THREADPOOL_SIZE: String(CALLERS) };
  const reader = await run(process.execPath, ['-e', READER, ...args], { env });
  t.deepEqual([reader.stderr, reader.stdout], ['', `${reads} reads, 0 wrong\n`]);
  const calls = readCalls(pid) - before.calls;
  t.is(readOperations(mountpoint), before.operations + (counted ? reads : 0), 'each read is counted once');
  // One by one each takes two; what a burst begins with is still served so.
  t.log(`${calls} calls of read(2) for ${reads} reads`);
  if (!located) return;
  const ring = openRing(t, 2);
  ring?.close();
  if (ring !== undefined) t.true(calls < 1.75 * reads, `${calls} calls for ${reads} reads`);
}

test.serial('a queue of reads of data, zeroes, holes and a backing file gets what the disk holds', async (t) => {
  if (!required(t, isRoot(), 'needs root for the control filesystem')) return;
  const directory = workspace(t);
  const { image, shadow } = overlayImage(directory);
  const { mountpoint, disk, unmount } = await mount(t, 'kernel', [...ONE_WORKER, image]);
  const fd = fs.openSync(disk, 'r+');
  for (const offset of [0, 100 * KIB, 3 * MIB + 512, 6 * MIB]) {
    const bytes = noise(90 * KIB, offset);
    fs.writeSync(fd, bytes, 0, bytes.length, offset);
    bytes.copy(shadow, offset);
  }
  fs.closeSync(fd);
  execFileSync('fallocate', ['--punch-hole', '-o', String(4 * MIB), '-l', String(MIB), disk]);
  shadow.fill(0, 4 * MIB, 5 * MIB);
  const expected = path.join(directory, 'expected');
  fs.writeFileSync(expected, shadow);
  await readInBursts(t, mountpoint, expected);
  sameBytes(t, fs.readFileSync(disk), shadow, 'the whole disk');
  await unmount();
});

test.serial('a queue of reads behind the end of a host file that was cut gets zeroes', async (t) => {
  if (!required(t, isRoot(), 'needs root for the control filesystem')) return;
  const directory = workspace(t);
  const image = path.join(directory, 'vm.raw');
  const content = noise(4 * MIB, 7);
  fs.writeFileSync(image, content);
  const { mountpoint, disk, unmount } = await mount(t, 'kernel', [...ONE_WORKER, '--format', 'raw', image]);
  // In the middle of a block, too.
  fs.truncateSync(image, MIB + 1000);
  const expected = path.join(directory, 'expected');
  fs.writeFileSync(expected, content.fill(0, MIB + 1000).subarray(0, 3 * MIB));
  // Writes among them, which must be served in their turn: of what is there, for each that goes behind the cut makes the file longer.
  let ended = false;
  const reading = readInBursts(t, mountpoint, expected, { located: false }).finally(() => {
    ended = true;
  });
  const file = await fs.promises.open(disk, 'r+');
  let writes = 0;
  for (; !ended; writes++) {
    const offset = (writes % 16) * 64 * KIB;
    const { bytesWritten } = await file.write(content, offset, 64 * KIB, offset);
    if (bytesWritten !== 64 * KIB) t.fail(`${bytesWritten} bytes written`);
  }
  await reading;
  await file.close();
  t.true(writes > 0);
  t.is(fs.statSync(image).size, MIB + 1000);
  await unmount();
});

test.serial('a queue of reads of a snapshot gets what it holds, while the disk has changed', async (t) => {
  if (!required(t, isRoot(), 'needs root for the control filesystem')) return;
  const directory = workspace(t);
  const image = path.join(directory, 'vm.qcow2');
  createImage('-f', 'qcow2', image, String(4 * MIB));
  const { mountpoint, disk, unmount } = await mount(t, 'kernel', [...ONE_WORKER, image]);
  const before = noise(3 * MIB, 9);
  fs.writeFileSync(disk, before, { flag: 'r+' });
  fs.mkdirSync(path.join(mountpoint, 'snapshots', 'one'));
  fs.writeFileSync(disk, noise(2 * MIB, 10), { flag: 'r+' });
  const expected = path.join(directory, 'expected');
  fs.writeFileSync(expected, before);
  await readInBursts(t, mountpoint, expected, { file: 'snapshots/one/disk', counted: false });
  await unmount();
});

/** Reads blocks with many threads for a while; each word of a block is its number, or 0. */
const CHECKER = `
  const fs = require('fs');
  const [disk, blocks, milliseconds] = process.argv.slice(1);
  const fd = fs.openSync(disk, 'r');
  const end = Date.now() + Number(milliseconds);
  let reads = 0;
  const one = (bytes) => {
    if (Date.now() > end) return;
    const block = Math.floor(Math.random() * Number(blocks));
    fs.read(fd, bytes, 0, ${BLOCK}, block * ${BLOCK}, (error, count) => {
      if (error || count !== ${BLOCK}) throw error ?? new Error('short');
      const words = new Uint32Array(bytes.buffer, bytes.byteOffset, ${BLOCK / 4});
      const wrong = words.find((word) => word !== 0 && word !== block + 1);
      if (wrong !== undefined) throw new Error('block ' + block + ' holds ' + wrong);
      reads++;
      one(bytes);
    });
  };
  for (let i = 0; i < ${CALLERS}; i++) one(Buffer.alloc(${BLOCK}));
  process.on('exit', (code) => code === 0 && console.log(reads));
`;

test.serial(
  'a queue of reads never gets the bytes of another block while blocks are written, freed and used again',
  async (t) => {
    const directory = workspace(t);
    const image = path.join(directory, 'vm.qcow2');
    const blocks = 512;
    createImage('-f', 'qcow2', '-o', 'cluster_size=4096', image, String(blocks * BLOCK));
    const { disk, unmount } = await mount(t, 'kernel', [image]);
    const env = { ...process.env, UV_THREADPOOL_SIZE: String(CALLERS) };
    const checker = run(process.execPath, ['-e', CHECKER, disk, String(blocks), '2000'], { env });
    let ended = false;
    void checker.then(() => {
      ended = true;
    });
    const next = random(8);
    const file = await fs.promises.open(disk, 'r+');
    let writes = 0;
    for (; !ended; writes++) {
      const block = Math.floor(next() * blocks);
      if (writes % 8 === 7) {
        const range = ['-o', String(block * BLOCK), '-l', String(Math.min(16, blocks - block) * BLOCK)];
        await run('fallocate', ['--punch-hole', ...range, disk]);
        // What was freed may be used again once that is durable.
        await file.datasync();
      } else {
        await file.write(Buffer.from(new Uint32Array(BLOCK / 4).fill(block + 1).buffer), 0, BLOCK, block * BLOCK);
      }
    }
    await file.close();
    const { stdout, stderr } = await checker;
    t.is(stderr, '');
    t.true(Number(stdout) > 100, `${stdout} reads`);
    t.true(writes > 10, `${writes} writes`);
    await unmount();
    const checked = await imagefs(['check', image]);
    t.is(checked.code, 0, checked.stdout + checked.stderr);
  },
);
