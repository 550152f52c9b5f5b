/** The images whose daemon is killed: every format, alone and over a backing file. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { command as create } from '../../src/cli/commands/create';
import { KIB, SECTOR_SIZE } from '../../src/units';
import { open } from '../helpers/images';
import type { Random } from '../helpers/random';
import { DISK_SECTORS } from './territory';
import { BASE, fillSectors, ZERO } from './versions';

export interface ImageKind {
  name: string;
  format: 'qcow' | 'qcow2' | 'qed' | 'raw';
  /** One of them is taken each time. */
  clusterSizes: readonly number[];
  options?: readonly string[];
  /** Format of the backing file. */
  backing?: 'qcow2' | 'qed' | 'raw';
  snapshots?: boolean;
}

const SMALL_AND_USUAL = [4 * KIB, 64 * KIB];

export const IMAGE_KINDS: readonly ImageKind[] = [
  { name: 'qed', format: 'qed', clusterSizes: SMALL_AND_USUAL },
  { name: 'qed over raw', format: 'qed', clusterSizes: SMALL_AND_USUAL, backing: 'raw' },
  { name: 'qcow2', format: 'qcow2', clusterSizes: [512, 4 * KIB, 64 * KIB] },
  { name: 'qcow2 with snapshots', format: 'qcow2', clusterSizes: [512, 4 * KIB, 64 * KIB], snapshots: true },
  { name: 'qcow2 version 2', format: 'qcow2', clusterSizes: SMALL_AND_USUAL, options: ['compat=0.10'] },
  {
    name: 'qcow2, lazy refcounts',
    format: 'qcow2',
    clusterSizes: SMALL_AND_USUAL,
    options: ['lazy_refcounts=on'],
    snapshots: true,
  },
  {
    name: 'qcow2, subclusters, with snapshots',
    format: 'qcow2',
    clusterSizes: [16 * KIB, 64 * KIB],
    options: ['extended_l2=on'],
    snapshots: true,
  },
  {
    name: 'qcow2, subclusters, over qed',
    format: 'qcow2',
    clusterSizes: [16 * KIB, 64 * KIB],
    options: ['extended_l2=on'],
    backing: 'qed',
  },
  {
    name: 'qcow2 over qcow2, with snapshots',
    format: 'qcow2',
    clusterSizes: SMALL_AND_USUAL,
    options: ['refcount_bits=64'],
    backing: 'qcow2',
    snapshots: true,
  },
  { name: 'qcow2 with a data file', format: 'qcow2', clusterSizes: SMALL_AND_USUAL, options: ['data_file=data.raw'] },
  { name: 'qcow', format: 'qcow', clusterSizes: [] },
  { name: 'qcow over raw', format: 'qcow', clusterSizes: [], backing: 'raw' },
  { name: 'raw', format: 'raw', clusterSizes: [] },
];

export interface PreparedImage {
  file: string;
  kind: ImageKind;
  clusterSize: number | undefined;
  /** Version of each sector. */
  versions: Int32Array;
}

export function prepareImage(directory: string, kind: ImageKind, random: Random): PreparedImage {
  const file = path.join(directory, `vm.${kind.format}`);
  const versions = new Int32Array(DISK_SECTORS).fill(ZERO);
  const clusterSize = kind.clusterSizes.length === 0 ? undefined : random.pick(kind.clusterSizes);
  const options = [...(kind.options ?? []), ...(clusterSize === undefined ? [] : [`cluster_size=${clusterSize}`])].map(
    (option) => option.replace('data_file=', `data_file=${directory}/`),
  );
  const words = ['-f', kind.format];
  if (kind.backing !== undefined) {
    const base = path.join(directory, `base.${kind.backing}`);
    run('-f', kind.backing, base, String(DISK_SECTORS * SECTOR_SIZE));
    fillBase(base, versions, random);
    words.push('-b', base, '-F', kind.backing);
  }
  if (options.length > 0) words.push('-o', options.join(','));
  run(...words, file, String(DISK_SECTORS * SECTOR_SIZE));
  return { file, kind, clusterSize, versions };
}

function run(...words: string[]): void {
  const code = create.run(['-q', ...words]);
  if (code !== 0) throw new Error(`imagefs create ${words.join(' ')}: exit code ${String(code)}`);
}

/** Runs of sectors with holes between them. */
function fillBase(file: string, versions: Int32Array, random: Random): void {
  const image = open(file);
  const buffer = new Uint8Array(256 * SECTOR_SIZE);
  try {
    for (let first = 0; first < DISK_SECTORS; ) {
      const count = Math.min(random.between(1, 256), DISK_SECTORS - first);
      if (random.chance(0.6)) {
        fillSectors(buffer, first, count, BASE);
        image.node.write(first * SECTOR_SIZE, buffer, 0, count * SECTOR_SIZE);
        versions.fill(BASE, first, first + count);
      }
      first += count;
    }
  } finally {
    image.close();
  }
}

/** So that the next image begins anew. */
export function removeImages(directory: string): void {
  for (const name of fs.readdirSync(directory)) {
    if (/^(vm|base|data)\./.test(name)) fs.unlinkSync(path.join(directory, name));
  }
}
