/** fio: as a stranger who writes beside our own writers, and as a crowd of jobs. */
import { spawn, spawnSync } from 'node:child_process';
import * as path from 'node:path';
import { MIB, SECTOR_SIZE } from '../../src/units';
import type { Random } from '../helpers/random';
import { OWNED_SECTORS } from './territory';
import { BASE, TORN, ZERO } from './versions';

export function haveFio(): boolean {
  return spawnSync('fio', ['--version']).status === 0;
}

export interface Stranger {
  ended: Promise<void>;
}

/** What fio fills its blocks with; also the words of its sectors, whatever the order of bytes. */
const PATTERN = 0xa5a5a5a5;

/** fio behind the end of what our writers own, until the daemon dies. */
export function startStranger(mountpoint: string, random: Random): Stranger {
  const depth = random.pick([1, 8, 32]);
  const child = spawn(
    'fio',
    [
      '--name=stranger',
      `--filename=${path.join(mountpoint, 'disk')}`,
      `--offset=${OWNED_SECTORS * SECTOR_SIZE}`,
      `--size=${4 * MIB}`,
      `--bsrange=4k-${random.pick([16, 64, 256])}k`,
      `--rw=${random.pick(['randwrite', 'randrw', 'write'])}`,
      '--direct=1',
      '--ioengine=libaio',
      `--iodepth=${depth}`,
      `--buffer_pattern=0x${PATTERN.toString(16)}`,
      `--fsync=${random.pick([0, 16, 64])}`,
      `--randseed=${random.below(1e6)}`,
      '--time_based',
      '--runtime=60',
      '--allow_file_create=0',
      '--overwrite=1',
    ],
    { stdio: 'ignore', cwd: '/' },
  );
  // It fails with the mount: that is its end.
  return { ended: new Promise((resolve) => child.once('close', () => resolve())) };
}

/** Lines about sectors from `first` on that hold neither fio's pattern nor what was there before. */
export function strangeSectors(bytes: Uint8Array, versions: Int32Array, first: number): string[] {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  const lines: string[] = [];
  for (let sector = first; sector < versions.length && lines.length < 4; sector++) {
    if (versions[sector] === ZERO || versions[sector] === BASE) continue;
    const at = (sector * SECTOR_SIZE) / 4;
    const own = versions[sector] === TORN || versions[sector] === (PATTERN | 0);
    if (!own || words.subarray(at, at + SECTOR_SIZE / 4).some((word) => word !== PATTERN)) {
      lines.push(`sector ${sector} holds bytes that fio never wrote`);
    }
  }
  return lines;
}
