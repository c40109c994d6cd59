//! The physical memory map: sorted, free of overlaps, in whole pages.

use core::fmt;

use crate::PAGE_BYTES;

/// Most regions that a [`MemoryMap`] holds.
pub const MAX_REGIONS: usize = 256;

/// What a [`Region`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionKind {
    /// RAM that nobody uses.
    Usable,
    /// Not to be touched: firmware, devices, and whatever the loader did not explain.
    Reserved,
    /// ACPI tables in RAM; usable once nobody needs the tables any more.
    AcpiReclaimable,
    /// RAM that firmware keeps across sleep.
    AcpiNvs,
    /// Defective RAM.
    Defective,
    /// This binary: code, data, stack and page tables.
    Image,
    /// A module's bytes.
    Module,
    /// What the loader wrote for us and [`BootInfo`](crate::BootInfo) refers to: strings and tables.
    LoaderData,
}

/// A piece of physical memory. Start and length are whole pages; the length is not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it is.
    pub kind: RegionKind,
}

impl Region {
    /// First byte behind the region.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// The map would need more than [`MAX_REGIONS`] regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyRegions;

impl fmt::Display for TooManyRegions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the memory map has more than {MAX_REGIONS} regions")
    }
}

impl core::error::Error for TooManyRegions {}

/// All that is known about physical memory. What is in no region is not RAM.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemoryMap {
    regions: heapless::Vec<Region, MAX_REGIONS>,
}

impl MemoryMap {
    /// A map of nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { regions: heapless::Vec::new() }
    }

    /// The regions, by ascending address, none touching another's bytes.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The regions of usable RAM, by ascending address.
    pub fn usable(&self) -> impl Iterator<Item = Region> + '_ {
        self.regions.iter().copied().filter(|region| region.kind == RegionKind::Usable)
    }

    /// Adds what firmware says about `len` bytes at `start`. Where statements overlap, the one that is not
    /// [`Usable`](RegionKind::Usable) holds, whatever the order. Partial pages of usable RAM are left out,
    /// those of anything else are rounded up.
    ///
    /// # Errors
    /// When there are too many regions.
    pub fn add(&mut self, start: u64, len: u64, kind: RegionKind) -> Result<(), TooManyRegions> {
        if kind != RegionKind::Usable {
            return self.carve(start, len, kind);
        }
        let end = page_floor(end_of(start, len));
        // Fill only the gaps between what is known already.
        let mut at = start.checked_next_multiple_of(PAGE_BYTES).unwrap_or(u64::MAX);
        while at < end {
            let next = self.regions.iter().copied().find(|region| region.end() > at);
            match next {
                Some(region) if region.start <= at => at = region.end(),
                _ => {
                    let gap_end = next.map_or(end, |region| region.start.min(end));
                    self.insert(Region { start: at, len: gap_end - at, kind })?;
                    at = gap_end;
                }
            }
        }
        self.merge();
        Ok(())
    }

    /// Makes every page that the `len` bytes at `start` touch a region of `kind`, whatever was known about them.
    ///
    /// # Errors
    /// When there are too many regions.
    pub fn carve(&mut self, start: u64, len: u64, kind: RegionKind) -> Result<(), TooManyRegions> {
        if len == 0 {
            return Ok(());
        }
        let end = end_of(start, len).checked_next_multiple_of(PAGE_BYTES).unwrap_or(page_floor(u64::MAX));
        let start = page_floor(start);
        if start >= end {
            return Ok(());
        }
        let mut kept = Self::new();
        for region in &self.regions {
            kept.push(Region { len: region.end().min(start).saturating_sub(region.start), ..*region })?;
            let tail = region.start.max(end);
            kept.push(Region { start: tail, len: region.end().saturating_sub(tail), ..*region })?;
        }
        kept.insert(Region { start, len: end - start, kind })?;
        kept.merge();
        *self = kept;
        Ok(())
    }

    /// Appends a region unless it is empty.
    fn push(&mut self, region: Region) -> Result<(), TooManyRegions> {
        if region.len == 0 {
            return Ok(());
        }
        self.regions.push(region).map_err(|_| TooManyRegions)
    }

    /// Inserts a region, which overlaps no other, at its place.
    fn insert(&mut self, region: Region) -> Result<(), TooManyRegions> {
        let place = self.regions.partition_point(|other| other.start < region.start);
        self.regions.insert(place, region).map_err(|_| TooManyRegions)
    }

    /// Joins neighbours of the same kind.
    fn merge(&mut self) {
        let mut merged = heapless::Vec::<Region, MAX_REGIONS>::new();
        for region in &self.regions {
            match merged.last_mut() {
                Some(last) if last.kind == region.kind && last.end() == region.start => last.len += region.len,
                // Cannot fail: there are never more regions than before.
                _ => drop(merged.push(*region)),
            }
        }
        self.regions = merged;
    }
}

/// The last page boundary at or below `address`.
fn page_floor(address: u64) -> u64 {
    address & !(PAGE_BYTES - 1)
}

/// The end of `len` bytes at `start`, cut at the end of the address space.
fn end_of(start: u64, len: u64) -> u64 {
    start.saturating_add(len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind(number: u8) -> RegionKind {
        [RegionKind::Usable, RegionKind::Reserved, RegionKind::AcpiNvs, RegionKind::Module][usize::from(number % 4)]
    }

    fn region(start: u64, end: u64, kind: RegionKind) -> Region {
        Region { start, len: end - start, kind }
    }

    #[test]
    fn a_pc_with_an_image_and_a_module() {
        let mut map = MemoryMap::new();
        map.add(0, 0x9_fc00, RegionKind::Usable).unwrap();
        map.add(0x9_fc00, 0x400, RegionKind::Reserved).unwrap();
        map.add(0x10_0000, 0x3f0_0000, RegionKind::Usable).unwrap();
        map.carve(0x20_0000, 0x1_2345, RegionKind::Image).unwrap();
        map.carve(0x3ff_f800, 0x10, RegionKind::Module).unwrap();
        assert_eq!(
            map.regions(),
            [
                region(0, 0x9_f000, RegionKind::Usable),
                region(0x9_f000, 0xa_0000, RegionKind::Reserved),
                region(0x10_0000, 0x20_0000, RegionKind::Usable),
                region(0x20_0000, 0x21_3000, RegionKind::Image),
                region(0x21_3000, 0x3ff_f000, RegionKind::Usable),
                region(0x3ff_f000, 0x400_0000, RegionKind::Module),
            ]
        );
    }

    #[test]
    fn too_many_regions_are_an_error() {
        let mut map = MemoryMap::new();
        let result = (0..=MAX_REGIONS as u64).try_for_each(|n| map.add(n * 0x2000, 0x1000, RegionKind::Usable));
        assert_eq!(result, Err(TooManyRegions));
    }

    proptest! {
        // Compares with one flag per page.
        #[test]
        fn agrees_with_a_page_table(statements in prop::collection::vec((0u64..40_000, 0u64..20_000, 0u8..4, any::<bool>()), 0..20)) {
            let mut map = MemoryMap::new();
            let mut pages = [None; 16];
            for (start, len, number, carve) in statements {
                let kind = kind(number);
                if carve { map.carve(start, len, kind).unwrap() } else { map.add(start, len, kind).unwrap() }
                for (page, known) in (0u64..).zip(pages.iter_mut()) {
                    let (from, to) = (page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
                    let whole = start <= from && start + len >= to;
                    let touched = len > 0 && start < to && start + len > from;
                    if carve || kind != RegionKind::Usable {
                        if touched { *known = Some(kind) }
                    } else if whole && known.is_none() {
                        *known = Some(kind);
                    }
                }
            }
            for (page, known) in (0u64..).zip(pages) {
                let at = page * PAGE_BYTES;
                let found = map.regions().iter().find(|region| region.start <= at && at < region.end());
                prop_assert_eq!(found.map(|region| region.kind), known);
            }
            prop_assert!(map.regions().windows(2).all(|pair| pair[0].end() <= pair[1].start));
        }

        #[test]
        fn any_numbers_are_taken(statements in prop::collection::vec((any::<u64>(), any::<u64>(), 0u8..4), 0..20)) {
            let mut map = MemoryMap::new();
            for (start, len, number) in statements {
                map.add(start, len, kind(number)).unwrap();
            }
            prop_assert!(map.regions().iter().all(|region| region.len > 0 && region.start.checked_add(region.len).is_some()));
        }
    }
}
