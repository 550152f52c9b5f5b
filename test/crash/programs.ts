/** What is done to a disk while the power may fail, kind by kind. */
import type { Random } from '../helpers/random';
import type { Program, RecordedDisk } from './disk-run';
import type { CrashImage } from './images';

export interface Kind {
  name: string;
  prepare: Program;
  program: Program;
  /** Only these images have what it is about. */
  suits?: (image: CrashImage) => boolean;
}

const nothing: Program = () => {};

const compresses = ({ image, data }: CrashImage) => image.format.startsWith('qcow') && data === undefined;

/** Data in some clusters of the first and of the second table. */
const filled: Program = (disk) => {
  const { cluster, span } = disk.image;
  disk.write(0, 4 * cluster);
  disk.write(6 * cluster + 100, 2 * cluster);
  if (span + 2 * cluster < disk.size) disk.write(span, 2 * cluster);
};

/** A few clusters of the disk, not always whole ones. */
function somewhere(disk: RecordedDisk, random: Random, clusters: number): [number, number] {
  const { cluster } = disk.image;
  const most = Math.max(1, Math.floor(disk.size / cluster) - clusters);
  const offset = random.below(Math.min(most, 24)) * cluster;
  const within = random.chance(0.5) ? 0 : random.below(cluster);
  return [offset + within, random.chance(0.5) ? random.between(1, 700) : clusters * cluster];
}

function mixed(operations: number): Program {
  return (disk, random) => {
    const { cluster, span, size } = disk.image;
    // A small part of the disk, so that clusters are dropped and used again and again, and ends of tables now and then.
    const spots = [0, 5 * cluster, span - cluster, span, size - (size % cluster) - cluster, size - 512];
    for (let index = 0; index < operations; index++) {
      const length = random.chance(0.5) ? random.between(1, 3000) : random.between(1, 5 * cluster);
      let offset = Math.max(0, Math.min(disk.size - 1, random.pick(spots) + random.below(6 * cluster)));
      if (random.chance(0.3)) offset -= offset % cluster;
      const what = random.below(100);
      if (what < 12 && compresses(disk.image)) disk.compress(offset, length);
      else if (what < 45) disk.write(offset, length);
      else if (what < 70) disk.zero(offset, length);
      else if (what < 74) disk.allocate(offset, length);
      else if (what < 90) disk.flush();
      else if (what < 95) disk.maintain();
      else if (random.chance(0.4)) disk.grow(512 * random.between(1, 40));
    }
  };
}

export const KINDS: readonly Kind[] = [
  {
    name: 'allocating writes',
    prepare: nothing,
    program: (disk, random) => {
      for (let round = 0; round < 2; round++) {
        for (let write = 0; write < random.between(1, 3); write++) disk.write(...somewhere(disk, random, 2));
        disk.flush();
      }
      disk.write(...somewhere(disk, random, 1));
    },
  },
  {
    name: 'copy-on-write',
    suits: ({ backing }) => backing !== undefined,
    prepare: nothing,
    program: (disk, random) => {
      const { cluster, backing = 0 } = disk.image;
      for (let round = 0; round < 3; round++) {
        const at = random.below(20) * cluster;
        disk.write(at + random.between(1, cluster - 1), random.between(1, 2 * cluster));
        // Across the end of the backing file, where it is the shorter one.
        if (round === 1) disk.write(Math.min(disk.size - 200, backing - 100), 200);
        if (random.chance(0.7)) disk.flush();
      }
    },
  },
  {
    name: 'zero',
    prepare: filled,
    program: (disk, random) => {
      const { cluster } = disk.image;
      disk.zero(cluster, cluster);
      disk.zero(random.below(3 * cluster), random.between(1, 3 * cluster));
      disk.flush();
      disk.zero(6 * cluster, 3 * cluster);
      disk.write(2 * cluster + 50, 60);
      disk.flush();
      disk.zero(random.below(10 * cluster), random.between(1, 4 * cluster));
    },
  },
  {
    name: 'discard and reuse',
    prepare: filled,
    program: (disk, random) => {
      const { cluster } = disk.image;
      disk.zero(0, 4 * cluster);
      disk.write(random.between(10, 14) * cluster + 30, cluster);
      disk.flush();
      // What was dropped is free now, and taken.
      disk.write(random.between(15, 20) * cluster, 2 * cluster);
      disk.zero(6 * cluster, 2 * cluster);
      disk.flush();
      disk.flush();
      disk.write(2 * cluster + random.below(cluster), 2 * cluster);
      if (random.chance(0.5)) disk.write(random.below(8) * cluster, 3 * cluster);
      disk.flush();
    },
  },
  {
    name: 'table growth',
    prepare: nothing,
    program: (disk, random) => {
      const { cluster, span } = disk.image;
      const tables = Math.max(1, Math.min(6, Math.floor(disk.size / span)));
      for (let table = 0; table < tables; table++) {
        const at = table * span + random.below(4) * cluster;
        disk.write(Math.min(at, disk.size - 600), random.chance(0.3) ? 30 * cluster : random.between(1, 600));
        if (random.chance(0.3)) disk.flush();
      }
      // Enough clusters for more blocks of counts, where clusters and blocks are small.
      disk.write(random.below(5) * cluster, Math.min(disk.size / 2, 150 * cluster));
      disk.flush();
      disk.write(disk.size - 100, 100);
    },
  },
  {
    name: 'resize',
    prepare: filled,
    program: (disk, random) => {
      const { span } = disk.image;
      disk.write(disk.size - 300, 300);
      disk.grow(512 * random.between(1, 9));
      disk.write(disk.size - 700, 700);
      if (random.chance(0.5)) disk.flush();
      // Several tables more: the first level has to grow.
      disk.grow(Math.min(1024 * 1024, 3 * span));
      disk.flush();
      disk.write(disk.size - 1000, 900);
      disk.grow(512);
    },
  },
  {
    name: 'compressed writes',
    suits: compresses,
    prepare: filled,
    program: (disk, random) => {
      const { cluster } = disk.image;
      disk.compress(random.between(10, 14) * cluster, 3 * cluster);
      disk.compress(0, cluster);
      disk.flush();
      // Plain again in part, dropped in part, and others where the dropped ones were: compressed data share clusters.
      disk.write(random.between(10, 16) * cluster + 40, random.between(1, cluster));
      disk.zero(random.between(10, 16) * cluster, cluster);
      disk.flush();
      disk.flush();
      disk.compress(random.between(18, 22) * cluster, 2 * cluster);
      disk.write(random.below(20) * cluster, 2 * cluster);
    },
  },
  { name: 'all of it', prepare: nothing, program: mixed(70) },
];
