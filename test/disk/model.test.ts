/** A random program of file operations on `disk`, against a plain buffer; the image is then judged by others. `SEED=n` replays a run. */
import * as fs from 'node:fs';
import test, { type ExecutionContext } from 'ava';
import { type FallocateHow, fallocate } from '../../src/system/fallocate';
import { MIB } from '../../src/units';
import { workspace } from '../mount/cli';
import {
  CLUSTER,
  DISK_SIZE,
  mount,
  noise,
  onBothSessions,
  overlayImage,
  random,
  type Session,
  sameBytes,
  verifyImage,
} from './disk-mount';

const STEPS = 400;
const PUNCHES: readonly FallocateHow[] = ['punch-hole', 'zero-range', 'allocate'];

interface Step {
  what: 'read' | 'write' | 'fsync' | FallocateHow;
  offset: number;
  length: number;
}

/** Offsets near borders of clusters as often as anywhere else; lengths small as often as large. */
function nextStep(next: () => number, session: Session): Step {
  const any = Math.floor(next() * DISK_SIZE);
  const border = Math.floor(any / CLUSTER) * CLUSTER + Math.floor(next() * 5) - 2;
  const offset = Math.max(0, next() < 0.5 ? any : border);
  const longest = [513, 2 * CLUSTER, MIB][Math.floor(next() * 3)] ?? 1;
  const length = Math.max(1, Math.min(1 + Math.floor(next() * longest), DISK_SIZE - offset));
  const dice = next();
  if (dice < 0.45) return { what: 'write', offset, length };
  if (dice < 0.75) return { what: 'read', offset, length };
  if (dice < 0.8) return { what: 'fsync', offset, length };
  return { what: session === 'native' ? 'write' : (PUNCHES[Math.floor(next() * 3)] ?? 'allocate'), offset, length };
}

function carryOut(t: ExecutionContext, fd: number, step: Step, shadow: Buffer, seed: number): boolean {
  const { what, offset, length } = step;
  switch (what) {
    case 'read': {
      const found = Buffer.alloc(length);
      const count = fs.readSync(fd, found, 0, length, offset);
      return count === length && Buffer.compare(found, shadow.subarray(offset, offset + length)) === 0;
    }
    case 'write': {
      const content = noise(length, seed);
      content.copy(shadow, offset);
      return fs.writeSync(fd, content, 0, length, offset) === length;
    }
    case 'fsync':
      fs.fsyncSync(fd);
      return true;
    default:
      fallocate(fd, what, offset, length);
      if (what !== 'allocate') shadow.fill(0, offset, offset + length);
      t.is(fs.fstatSync(fd).size, DISK_SIZE);
      return true;
  }
}

async function runProgram(t: ExecutionContext, session: Session, args: readonly string[]): Promise<void> {
  const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
  t.log(`SEED=${seed}`);
  const next = random(seed);
  const directory = workspace(t);
  const { image, shadow } = overlayImage(directory);
  const { disk, unmount } = await mount(t, session, [...args, image]);
  const fd = fs.openSync(disk, 'r+');
  for (let index = 0; index < STEPS; index += 1) {
    const step = nextStep(next, session);
    if (carryOut(t, fd, step, shadow, seed + index)) continue;
    t.fail(`SEED=${seed}, step ${index}: ${JSON.stringify(step)}`);
    break;
  }
  fs.closeSync(fd);
  sameBytes(t, fs.readFileSync(disk), shadow, `SEED=${seed}`);
  await unmount();
  await verifyImage(t, directory, image, shadow, { freed: true });
}

onBothSessions('disk behaves like a plain file of its size under a random program', (t, session) =>
  runProgram(t, session, []),
);

test.serial('disk behaves like a plain file under a random program, through the page cache (kernel session)', (t) =>
  runProgram(t, 'kernel', ['--kernel-cache']),
);
