/** Sets counts in the refcount blocks that are there, without a change of place. */
import type { CheckMessages } from '../check-messages';
import { getCount, setCount } from './refcount-codec';
import type { Qcow2Scan } from './scan';

/** Freed runs that are remembered until they are punched. */
const RUNS_MAX = 65536;

interface Run {
  first: number;
  count: number;
}

/** Counts that are lower than the references. @returns how many were raised */
export function raiseCounts(scan: Qcow2Scan, messages: CheckMessages): number {
  let raised = 0;
  eachBlock(scan, (cluster, onDisk, wanted) => {
    if (onDisk >= wanted) return onDisk;
    raised++;
    messages.add(`Repairing cluster ${cluster} refcount=${onDisk} reference=${wanted}`);
    return wanted;
  });
  scan.report.storage.sync('check-repair');
  return raised;
}

/**
 * Counts that are higher than the references, and the space of clusters that nobody uses any more.
 * @returns how many were lowered inside the file
 */
export function lowerCounts(scan: Qcow2Scan, messages: CheckMessages): number {
  const { report } = scan;
  let runs: Run[] = [];
  let lowered = 0;
  // First the counts are safe, then the bytes go: a crash in between leaves garbage in free clusters, which is no harm.
  const punch = () => {
    report.storage.sync('check-repair');
    const { clusterSize } = report.header;
    for (const { first, count } of runs) {
      report.storage.punch(first * clusterSize, count * clusterSize, 'check-repair');
    }
    runs = [];
  };
  eachBlock(
    scan,
    (cluster, onDisk, wanted) => {
      if (onDisk <= wanted) return onDisk;
      // Past the end of the file there is nothing to free or to tell: the counts are set right all the same.
      if (cluster >= report.fileClusters) return wanted;
      lowered++;
      messages.add(`Repairing cluster ${cluster} refcount=${onDisk} reference=${wanted}`);
      if (wanted === 0) addTo(runs, cluster);
      return wanted;
    },
    () => {
      if (runs.length > RUNS_MAX) punch();
    },
  );
  punch();
  return lowered;
}

function addTo(runs: Run[], cluster: number): void {
  const last = runs.at(-1);
  if (last !== undefined && last.first + last.count === cluster) last.count++;
  else runs.push({ first: cluster, count: 1 });
}

/** Lets `decide` set each count of each block. A block that changes is written at once: torn or not, each count is an old or a new one. */
function eachBlock(
  { report, structure }: Qcow2Scan,
  decide: (cluster: number, onDisk: number, wanted: number) => number,
  afterBlock: () => void = () => {},
): void {
  const { clusterSize, refcountOrder } = report.header;
  for (let index = 0; index < structure.blocks.length; index++) {
    if (!structure.usable(index)) continue;
    const block = structure.readBlock(index);
    if (block === undefined) continue;
    const first = index * structure.perBlock;
    let changed = false;
    for (let at = 0; at < structure.perBlock; at++) {
      const onDisk = getCount(block, 0, at, refcountOrder);
      const wanted = report.wanted(first + at);
      if (onDisk === wanted) continue;
      const count = decide(first + at, onDisk, wanted);
      if (count === onDisk) continue;
      setCount(block, 0, at, refcountOrder, count);
      changed = true;
    }
    if (changed) report.storage.write(structure.blocks[index], block, 0, clusterSize, 'refcount-update');
    afterBlock();
  }
}
